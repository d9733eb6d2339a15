#!/usr/bin/env bash
# The C++ tests of the engine's rooms under sanitizers: builds them in build/sanitize-<which>, runs them, and ends
# with a line for each sanitizer. A report in any process fails it.
#
#   sanitize.sh [address] [thread]       default: both; address has undefined behaviour and leaks with it
#
# Environment: JOBS, compile jobs; RTP_FUZZ_MESSAGES, messages to each machine of the handover under `address`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

rooms=(kv handover transfer engine)
bin=$PWD/.venv/bin

# The only SIMD level that is built.
export RTP_LLM_ISA=generic
export ASAN_OPTIONS=detect_stack_use_after_return=1
export LSAN_OPTIONS=suppressions=$PWD/tools/leaks.supp:print_suppressions=0
export UBSAN_OPTIONS=print_stacktrace=1

build() {
  "$bin/cmake" -S . -B "build/sanitize-$1" -G Ninja \
    -DCMAKE_MAKE_PROGRAM="$bin/ninja" -DPython_EXECUTABLE="$bin/python" \
    -DRTP_SANITIZE="$1" -DRTP_CPU_ISAS="$RTP_LLM_ISA" -DRTP_BUILD_BINDINGS=OFF -DRTP_BUILD_TESTS=ON >/dev/null
  "$bin/ninja" -C "build/sanitize-$1" -j "${JOBS:-$(nproc)}" "${rooms[@]/%/_test}" transfer_peer
}

# What `thread` needs to start with, if it can: its shadow memory has fixed places, which address space randomization
# may have given away.
thread_prefix() {
  local probe=build/sanitize-thread/tests/kv_test
  for prefix in "" "setarch -R"; do
    if $prefix "$probe" --list >/dev/null 2>&1; then
      echo "$prefix"
      return
    fi
  done
  return 1
}

# run NAME COMMAND...: its count of tests, or its output and the end.
run() {
  local name=$1 log=build/sanitize-$sanitizer/$1.log status=0
  shift
  "$@" >"$log" 2>&1 || status=$?
  # Second processes of a test are killed at its end: of them only the text is seen.
  if ((status != 0)) || grep -qE 'Sanitizer|runtime error:' "$log"; then
    cat "$log"
    echo "sanitizer $sanitizer: $name failed (exit status $status)" >&2
    exit 1
  fi
  passed+=("$name $(sed -n 's/^\([0-9]*\) passed, .*/\1/p' "$log")")
}

run_all() {
  local tests=build/sanitize-$sanitizer/tests room
  for room in "${rooms[@]}"; do run "$room" "$@" "$tests/${room}_test"; done
  run queued "$@" env RTP_LLM_QUEUED_DEVICE=7 "$tests/engine_test" engine_test. exactness_test. handover_test.
}

(($# > 0)) || set -- address thread
summary=()
for sanitizer in "$@"; do
  begin=$SECONDS passed=()
  build "$sanitizer"
  built=$((SECONDS - begin))
  case $sanitizer in
    address) run_all env RTP_FUZZ_MESSAGES="${RTP_FUZZ_MESSAGES:-500000}" ;;
    thread)
      if ! prefix=$(thread_prefix); then
        summary+=("thread: left out, it does not start here, nor without address space randomization")
        continue
      fi
      # UCX patches memory functions while others run.
      run_all $prefix env UCX_MEM_EVENTS=n UCX_MEM_MMAP_HOOK_MODE=none
      ;;
  esac
  summary+=("$sanitizer: clean; ${passed[*]} tests passed (build $built s, in all $((SECONDS - begin)) s)")
done
printf '%s\n' "${summary[@]}"
