"""What every Serve replica of ours does first: joins Serve's log, and keeps off other networks than Ray's."""

from __future__ import annotations

import logging
import sys
from typing import Any

import ray.util
from ray.serve._private import replica as serve_replica

from rtp_llm.config import Config


def replica_sections(config: Config) -> dict[str, Any]:
    """A replica's constructor argument. Without sizes of pools: Serve restarts replicas whose arguments change."""
    size = {"replicas"}
    return config.model_dump(exclude={"http": True, "router": size, "prefill": size, "decode": size})


def prepare_replica() -> None:
    """First thing in a deployment's constructor."""
    _log_with_serve()
    _listen_on_node_address()


def _log_with_serve() -> None:
    """`rtp_llm.*` joins Serve's logger, whose files lie in the session's logs/serve/. Ray carries stderr to the driver, so
    whoever started the deployment sees warnings."""
    ours = logging.getLogger("rtp_llm")
    stderr = logging.StreamHandler(sys.stderr)
    stderr.setLevel(logging.WARNING)
    stderr.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    ours.addHandler(stderr)
    ours.setLevel(logging.INFO)
    ours.parent = logging.getLogger("ray.serve")


def _listen_on_node_address() -> None:
    """Serve gives each replica a gRPC server for handle calls (we make none) on all interfaces, without a setting for it. It is
    started after the constructor: here its address becomes the one by which Ray knows this node."""
    add_port = serve_replica.add_port_to_grpc_server

    def add_port_at_node(server: Any, address: str) -> int:
        port = address.rpartition(":")[2]
        return int(add_port(server, f"{ray.util.get_node_ip_address()}:{port}"))

    serve_replica.add_port_to_grpc_server = add_port_at_node
