"""What every Serve replica of ours does first: joins Serve's log, and keeps off other networks than Ray's."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Mapping
from typing import Any

import ray.util
from ray import serve

from rtp_llm.config import Config
from rtp_llm.serve_internals import cluster_token, handle_calls_listen_on

NODE = "node"


def prepare_replica(sections: Mapping[str, Any]) -> Config:
    """First thing in a deployment's constructor: its config, with the host "node" replaced by this node's address in Ray,
    `worker.directory` by the name of this application's, and `worker.token` out of its file, or derived from Ray's own."""
    _log_with_serve()
    here = {"host": ray.util.get_node_ip_address()}
    handle_calls_listen_on(here["host"])
    config = Config.model_validate(sections)
    worker = {"directory": config.directory_of(serve.get_replica_context().app_name)}
    config = config.model_copy(
        update={
            "worker": config.worker.model_copy(update=worker | (here if config.worker.host == NODE else {})),
            "transfer": config.transfer.model_copy(update=here if config.transfer.host == NODE else {}),
        }
    )
    return config.with_token_read().with_token_derived(cluster_token())


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
