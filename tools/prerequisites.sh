#!/usr/bin/env bash
# What must be on the machine before `make setup` can do the rest. Names what is missing.
#
#   prerequisites.sh --python            print the newest supported Python on PATH, or nothing
#   prerequisites.sh --check PYTHON      check everything; exit 1 after naming all that is missing
#   prerequisites.sh --compiler          check the compiler alone
set -euo pipefail

missing=()

supported() {
  "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null
}

find_python() {
  local name
  for name in python3.14 python3.13 python3.12 python3.11 python3.10 python3 python; do
    if command -v "$name" >/dev/null && supported "$name"; then
      command -v "$name"
      return
    fi
  done
}

check_compiler() {
  local compiler=${CXX:-g++} version
  if ! command -v "$compiler" >/dev/null; then
    missing+=("$compiler, version 11 or newer (Debian: apt install g++)")
    return
  fi
  version=$("$compiler" -dumpversion | cut -d. -f1)
  if "$compiler" --version | head -1 | grep -qi clang; then
    return
  fi
  if ((version < 11)); then
    missing+=("g++ 11 or newer, this one is $version (Debian: apt install g++-11; then CXX=g++-11 make setup)")
  fi
}

check_python() {
  local python=$1 version
  if [[ -z $python ]] || ! command -v "$python" >/dev/null; then
    missing+=("Python 3.10 to 3.14 (Debian: apt install python3; or make PYTHON=/path/to/python)")
    return
  fi
  version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
  if ! supported "$python"; then
    missing+=("Python 3.10 to 3.14: $python is $version (make PYTHON=/path/to/python)")
    return
  fi
  if ! "$python" -c 'import venv, ensurepip' 2>/dev/null; then
    missing+=("the venv module of Python $version (Debian: apt install python$version-venv)")
  fi
  if ! "$python" -c 'import pathlib, sysconfig as s, sys; sys.exit(not pathlib.Path(s.get_path("include"), "Python.h").is_file())'; then
    missing+=("the headers of Python $version (Debian: apt install python$version-dev)")
  fi
}

report() {
  if ((${#missing[@]} == 0)); then
    return
  fi
  echo "Missing on this machine:" >&2
  printf '  - %s\n' "${missing[@]}" >&2
  exit 1
}

case ${1:-} in
  --python) find_python ;;
  --check)
    [[ $(uname -s) == Linux ]] || missing+=("Linux: this is $(uname -s)")
    command -v make >/dev/null || missing+=("make (Debian: apt install make)")
    check_compiler
    check_python "${2:-}"
    report
    ;;
  --compiler)
    check_compiler
    report
    ;;
  *)
    echo "usage: $0 --python | --check PYTHON | --compiler" >&2
    exit 2
    ;;
esac
