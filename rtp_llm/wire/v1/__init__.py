"""Generated from protos/rtp_llm/v1 by `make proto`; not edited by hand."""
