"""`rtp-llm bench serve`: load on an OpenAI-compatible server over HTTP, and what its clients see. docs/bench-serve.md."""
