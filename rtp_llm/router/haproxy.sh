#!/bin/sh
# Serve starts this in place of HAProxy (RAY_SERVE_HAPROXY_BINARY_PATH): haproxy.py, by the Python that RTP_LLM_PYTHON names.
exec "${RTP_LLM_PYTHON:-python3}" -I -S "$(dirname "$0")/haproxy.py" "$@"
