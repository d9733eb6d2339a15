"""One process with one native engine: its sessions with routers and peers, its drain. Start at `worker.py`."""
