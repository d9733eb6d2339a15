"""What every Serve replica of ours does first: joins Serve's log, and keeps off other networks than Ray's."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Mapping
from typing import Any

import ray.util
from ray.serve._private import replica as serve_replica

from rtp_llm.config import Config

NODE = "node"


def prepare_replica(sections: Mapping[str, Any]) -> Config:
    """First thing in a deployment's constructor: its config, with the host "node" replaced by this node's address in Ray."""
    _log_with_serve()
    _listen_on_node_address()
    here = {"host": ray.util.get_node_ip_address()}
    config = Config.model_validate(sections)
    return config.model_copy(
        update={
            name: section.model_copy(update=here)
            for name, section in (("worker", config.worker), ("transfer", config.transfer))
            if section.host == NODE
        }
    )


def _log_with_serve() -> None:
    """`rtp_llm.*` joins Serve's logger, whose files lie in the session's logs/serve/. Ray carries stderr to the driver, so
    whoever started the deployment sees warnings."""
    ours = logging.getLogger("rtp_llm")
    stderr = logging.StreamHandler(sys.__stderr__)  # sys.stderr leads into Serve's log
    stderr.setLevel(logging.WARNING)
    stderr.setFormatter(_Formatter("%(levelname)s %(name)s: %(message)s"))
    ours.addHandler(stderr)
    ours.setLevel(logging.INFO)
    ours.parent = logging.getLogger("ray.serve")


class _Formatter(logging.Formatter):
    """Tracebacks without print(): Serve puts one in its place that writes tuples into them. The record keeps the text for the
    handlers behind ours, Serve's file among them."""

    def formatException(self, ei: Any) -> str:  # noqa: N802 - logging's name
        return "".join(traceback.format_exception(*ei)).rstrip("\n")


def _listen_on_node_address() -> None:
    """Serve gives each replica a gRPC server for handle calls (we make none) on all interfaces, without a setting for it. It is
    started after the constructor: here its address becomes the one by which Ray knows this node."""
    add_port = serve_replica.add_port_to_grpc_server

    def add_port_at_node(server: Any, address: str) -> int:
        port = address.rpartition(":")[2]
        return int(add_port(server, f"{ray.util.get_node_ip_address()}:{port}"))

    serve_replica.add_port_to_grpc_server = add_port_at_node
