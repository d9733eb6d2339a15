#!/usr/bin/env bash
# Installs the package on a node: install.sh REQUIREMENT...
#
# REQUIREMENT: a wheel's path, or what pip finds on its index (rtp-llm==0.1.0). It makes, in $RTP_LLM_HOME (~/rtp_llm):
#   venv/            a Python environment (of $PYTHON, python3); one that exists is used
#   deploy/          these files, as the package brings them
#   environment.sh   to be sourced before `ray` and `serve`
# Run again, it takes the new package in place of the old one.
set -euo pipefail
[[ $# -gt 0 ]] || { sed -n '2,9s/^# \{0,1\}//p' "$0" >&2 && exit 2; }
home="${RTP_LLM_HOME:-$HOME/rtp_llm}"
python="${PYTHON:-python3}"

if [[ ! -x $home/venv/bin/python ]]; then
  if ! "$python" -c 'import ensurepip' 2>/dev/null; then # Debian, Ubuntu keep it in a package of its own
    sudo="$([[ $EUID == 0 ]] || echo sudo)"
    $sudo apt-get update -qq && $sudo apt-get install -y -qq python3-venv
  fi
  "$python" -m venv "$home/venv"
fi
pip=("$home/venv/bin/python" -m pip --disable-pip-version-check --quiet)
"${pip[@]}" uninstall --yes rtp-llm # pip would keep one of the same version
"${pip[@]}" install "$@"

package="$("$home/venv/bin/python" -c 'import importlib.util; print(importlib.util.find_spec("rtp_llm").submodule_search_locations[0])')"
ln -sfn "$package/deploy" "$home/deploy"
printf 'source %q\n' "$home/venv/bin/activate" "$home/deploy/ray/environment.sh" >"$home/environment.sh"
