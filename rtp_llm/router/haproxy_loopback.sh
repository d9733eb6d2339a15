#!/usr/bin/env bash
# Serve starts this in place of HAProxy (RAY_SERVE_HAPROXY_BINARY_PATH). Serve binds its stats and metrics ports to all
# interfaces; here they are moved to loopback before the real binary (RTP_LLM_HAPROXY) reads the file.
set -euo pipefail
for ((i = 1; i < $#; i++)); do
  if [ "${!i}" = -f ]; then
    next=$((i + 1))
    sed -i -E 's/^(\s*bind) (\*)?:([0-9]+)\s*$/\1 127.0.0.1:\3/' "${!next}"
  fi
done
exec "${RTP_LLM_HAPROXY:?the path of the haproxy binary}" "$@"
