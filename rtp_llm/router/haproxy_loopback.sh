#!/usr/bin/env bash
# Serve starts this in place of HAProxy (RAY_SERVE_HAPROXY_BINARY_PATH). Serve binds its stats and metrics ports to all
# interfaces; here they are moved to loopback before the real binary (RTP_LLM_HAPROXY) reads the file. And HAProxy dies with
# Serve's proxy actor, whose death would otherwise leave it behind with the port.
set -euo pipefail
for ((i = 1; i < $#; i++)); do
  if [ "${!i}" = -f ]; then
    next=$((i + 1))
    sed -i -E 's/^(\s*bind) (\*)?:([0-9]+)\s*$/\1 127.0.0.1:\3/' "${!next}"
  fi
done
haproxy=${RTP_LLM_HAPROXY:?the path of the haproxy binary}
if setpriv --pdeathsig KILL true 2>/dev/null; then
  exec setpriv --pdeathsig KILL "$haproxy" "$@"
fi
exec "$haproxy" "$@"
