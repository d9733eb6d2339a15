"""Generated from protos/rtp_llm/wire/v1 by `make proto`; not edited by hand."""
