"""Messages between processes and the gRPC sessions that carry them. Start at `session.py`."""
