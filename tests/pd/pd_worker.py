"""A worker without gRPC: an engine and its transfer thread; pickled messages over a pipe stand in for the sessions.

Run as `python pd_worker.py FD SETTINGS`: FD is one end of a socket pair, SETTINGS a JSON object. Everything that it hears is
(verb, …), everything that it says is (verb, …); native messages travel as (class path, fields).
"""

import json
import os
import select
import sys
import time
from multiprocessing.connection import Connection
from typing import Any

from rtp_llm._native import _engine

HEARTBEAT_S = 0.5

MODEL = {
    "architecture": "Qwen3ForCausalLM",
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "qk_norm": True,
    "tie_word_embeddings": True,
    "max_position_embeddings": 2048,
    "dtype": "bfloat16",
}


def plain(value: Any) -> Any:
    """A native object as plain Python, for pickle."""
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, dict):
        return {"@": "dict", "items": [[plain(key), plain(item)] for key, item in value.items()]}
    kind = type(value)
    fields = [name for name in dir(kind) if isinstance(getattr(kind, name), property)]
    module = kind.__module__.rpartition("_engine")[2].lstrip(".")
    return {"@": f"{module}.{kind.__name__}".lstrip("."), **{name: plain(getattr(value, name)) for name in fields}}


def native(value: Any) -> Any:
    """The other way round."""
    if isinstance(value, list):
        return [native(item) for item in value]
    if not isinstance(value, dict):
        return value
    if value["@"] == "dict":
        return {native(key): native(item) for key, item in value["items"]}
    kind: Any = _engine
    for name in value["@"].split("."):
        kind = getattr(kind, name)
    return kind(**{name: native(item) for name, item in value.items() if name != "@"})


class Worker:
    def __init__(self, pipe: Connection, settings: dict[str, Any]) -> None:
        self.pipe = pipe
        self.key = _engine.WorkerKey(settings["id"], int.from_bytes(os.urandom(7), "little"))
        model = _engine.ModelConfig(**{**MODEL, **settings.get("model", {})})
        # RTP_TEST_BACKEND=cuda: on a GPU, which all workers share.
        backend = os.environ.get("RTP_TEST_BACKEND") or "cpu"
        device = _engine.open_device(backend, num_threads=settings.get("num_threads", 1))
        weights = _engine.Weights(device, model)
        weights.write_random(7)
        weights.finish()
        decoder = _engine.Decoder(device, weights)
        self.engine = _engine.Engine(
            device,
            decoder,
            _engine.EngineConfig(
                max_num_batched_tokens=settings.get("max_num_batched_tokens", 128),
                max_num_seqs=settings.get("max_num_seqs", 64),
                max_model_len=settings.get("max_model_len", 512),
                block_tokens=16,
                kv_pool_bytes=0,
                num_kv_blocks=settings.get("num_kv_blocks", 600),
                kv_dtype=model.dtype,
                enable_prefix_caching=settings.get("enable_prefix_caching", True),
                layers_per_message=settings.get("layers_per_message", 2),
                itl_target_s=0.05,
                eos_token_ids=[0],
            ),
        )
        self.transfer = _engine.KvTransfer(
            device,
            self.engine,
            self.key,
            _engine.TransportConfig(settings["mode"]),
            times=_engine.HandoverTimes(**settings.get("times", {})),
        )
        self.outputs_fd = os.eventfd(0, os.EFD_NONBLOCK)
        self.engine.notify_through(self.outputs_fd)
        self.transfer.start()
        self.engine.start()
        self.receivers: list[Any] = []
        self.next_heartbeat = time.monotonic()

    def run(self) -> None:
        self.say("ready", plain(self.key), self.transfer.address, self.engine.numerics_id())
        while True:
            wait = max(0.0, self.next_heartbeat - time.monotonic())
            ready, _, _ = select.select([self.pipe, self.transfer, self.outputs_fd], [], [], wait)
            if self.outputs_fd in ready:
                os.eventfd_read(self.outputs_fd)
                self.tell_outputs()
            if self.transfer in ready:
                for outgoing in self.transfer.take():
                    self.tell(outgoing)
            if self.pipe in ready and not self.hear(*self.pipe.recv()):
                return
            if time.monotonic() >= self.next_heartbeat:
                self.next_heartbeat += HEARTBEAT_S
                for receiver in self.receivers:
                    self.transfer.post(_engine.event.HeartbeatDue(receiver=receiver))

    def say(self, *what: Any) -> None:
        self.pipe.send(what)

    def tell_outputs(self) -> None:
        columns = self.engine.take_outputs()
        rows = zip(
            columns.key,
            columns.position,
            columns.token,
            columns.logprob,
            columns.finish,
            columns.top_logprobs,
            strict=True,
        )
        self.say("outputs", [(plain(key), *rest) for key, *rest in rows])
        self.transfer.post_outputs(columns)

    def tell(self, outgoing: Any) -> None:
        match type(outgoing).__name__:
            case "ToRouter":
                self.say("to_router", plain(outgoing.body))
            case "ToSender":
                self.say("to_peer", plain(outgoing.sender), "FromReceiver", "receiver", plain(outgoing.body))
            case "ToReceiver":
                self.say("to_peer", plain(outgoing.receiver), "FromSender", "sender", plain(outgoing.body))
            case "Meet":
                if outgoing.receiver not in self.receivers:
                    self.receivers.append(outgoing.receiver)
                    self.say("hello", plain(outgoing.receiver))
            case "WantEndpoint":
                self.say("hello", plain(outgoing.receiver))
            case "TransferWarning":
                self.say("warning", outgoing.text)
            case "TransferFault":
                self.say("fault", outgoing.text)

    def hear(self, verb: str, *rest: Any) -> bool:
        if verb == "from_router":
            self.transfer.post(_engine.event.FromRouter(router_epoch=rest[0], body=native(rest[1])))
        elif verb == "router_connected":
            self.transfer.post(_engine.event.RouterConnected(router_epoch=rest[0]))
        elif verb == "from_peer":
            peer, kind, field, body = rest
            self.transfer.post(getattr(_engine.event, kind)(**{field: native(peer), "body": native(body)}))
        elif verb == "hello":  # of a sender
            self.say("offer", rest[0], self.transfer.address, self.transfer.expect(native(rest[0])))
        elif verb == "offer":
            self.transfer.connect(native(rest[0]), rest[1], rest[2])
        elif verb == "lost":
            event = {"sender": _engine.event.SenderLost, "receiver": _engine.event.ReceiverLost}[rest[0]]
            self.transfer.post(event(**{rest[0]: native(rest[1])}))
        elif verb == "figures":
            load = self.engine.load()
            counts = {
                name: plain(value) if name in ("sender", "receiver") else value
                for name, value in self.transfer.counts().items()
            }
            self.say("figures", {"counts": counts, "load": plain(load)})
        elif verb == "trace":
            self.say("trace", [(row[0], plain(row[1]), *row[2:]) for row in self.transfer.trace()])
        elif verb == "check_idle":
            self.say("idle", self.busy())
        elif verb == "stop":
            self.engine.stop()
            self.transfer.stop()
            return False
        return True

    def busy(self) -> str:
        try:
            self.transfer.check_idle()
            self.engine.check_idle()
        except Exception as error:
            return str(error)
        return ""


if __name__ == "__main__":
    Worker(Connection(int(sys.argv[1])), json.loads(sys.argv[2])).run()
