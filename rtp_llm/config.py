"""The one config tree. YAML files, CLI flags and environment variables are generated from it; nothing else holds a default.

A setting has one path, `engine.max_num_seqs`: in YAML a nested key, in the environment RTP_LLM_ENGINE__MAX_NUM_SEQS, on the
command line `--engine.max-num-seqs` (and short flags that cli.py names). Later beats earlier: defaults, file, environment,
command line.
"""

from __future__ import annotations

import enum
import hmac
import ipaddress
import json
import math
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidationInfo,
    create_model,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from rtp_llm import hub_cache
from rtp_llm.errors import ConfigError

ENVIRONMENT_PREFIX = "RTP_LLM_"
DEMO_MODEL = str(Path(__file__).parent / "demo")


class Pool(str, enum.Enum):
    """The pools of an application. Every worker can do either part; the pool says which it is given."""

    PREFILL = "prefill"
    DECODE = "decode"

    __str__ = str.__str__


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


SectionT = TypeVar("SectionT", bound=_Section)


class ModelSettings(_Section):
    path: str = Field(
        DEMO_MODEL,
        description="directory with config.json, safetensors and tokenizer files; or a model's name, `Qwen/Qwen3-0.6B`, that "
        "Hugging Face's tools have put into the cache (HF_HOME; at one path on each host): nothing is downloaded",
    )
    revision: str | None = Field(
        None, description="of a model by its name: branch, tag or commit; default: main. A directory has none"
    )
    served_name: str | None = Field(None, description="name in the API; default: the model's name, or the directory's")
    aliases: str = Field("", description="other names that requests may call it by, with commas between")
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="type that weights are multiplied in")
    max_model_len: int | None = Field(None, ge=2, description="prompt + output tokens; default: the model's context")
    tool_parser: str = Field(
        "auto",
        description="how the model writes tool calls (docs/answer-parts.md); auto: what its chat template shows; none",
    )
    reasoning_parser: str = Field("auto", description="how it writes what it thinks; auto, none, or a name")
    load_format: Literal["safetensors", "dummy"] = Field("safetensors", description="dummy: seeded random weights")


# Of settings that are not given with engine.device cuda.
GPU_DEFAULTS = {"max_num_batched_tokens": 8192, "max_num_seqs": 256, "block_tokens": 64}


class EngineSettings(_Section):
    device: Literal["cpu", "cuda"] = Field("cpu", description="backend; cuda: an NVIDIA GPU, bfloat16 only")
    isa: str = Field("", description="CPU: force one SIMD level (generic, avx2, avx512bf16, amxbf16); empty: the best")
    num_threads: int = Field(1, ge=1, description="CPU threads of one engine")
    max_num_batched_tokens: int = Field(512, ge=1, description="rows of one step; default with cuda: 8192")
    max_num_seqs: int = Field(64, ge=1, description="sequences that run at once; default with cuda: 256")
    block_tokens: int = Field(
        16, ge=1, le=512, description="tokens of a KV block; with cuda a multiple of 16, default 64"
    )
    kv_cache_bytes: int | None = Field(
        None,
        ge=0,
        description="size of the KV pool; 0: num_kv_blocks decides; default: kv_cache_share of the free memory, at most "
        "max_num_seqs times the context",
    )
    kv_cache_share: float = Field(
        0.5,
        gt=0,
        le=1,
        description="part of a worker's memory that its KV pool takes, where kv_cache_bytes is not set: of the host's free "
        "memory (or what its cgroup leaves) by the workers that start on it, less the weights",
    )
    gpu_memory_utilization: float = Field(
        0.9,
        gt=0,
        le=1,
        description="part of a GPU's memory that a worker takes, where kv_cache_bytes is not set: its KV pool is what weights, "
        "activations and 1 GiB for kernels and graphs leave of it",
    )
    num_kv_blocks: int = Field(0, ge=0, description="blocks of the KV pool; 0: kv_cache_bytes decides")
    kv_dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="type of stored K and V")
    enable_prefix_caching: bool = Field(True, description="reuse KV of equal prefixes")
    layers_per_message: int = Field(4, ge=1, description="layers of one handover message")
    step_timeout_s: float = Field(60.0, gt=0, description="a step that takes longer hangs: the worker has failed")
    itl_target_ms: float = Field(50.0, gt=0, description="decode step time that prefill chunks must leave room for")

    @model_validator(mode="before")
    @classmethod
    def _a_gpus_defaults(cls, values: Any) -> Any:
        return {**GPU_DEFAULTS, **values} if isinstance(values, dict) and values.get("device") == "cuda" else values

    @field_validator("block_tokens")
    @classmethod
    def _blocks_that_a_gpu_reads(cls, value: int, info: ValidationInfo) -> int:
        if info.data.get("device") == "cuda" and value % 16 != 0:
            raise PydanticCustomError("block_tokens", "must be a multiple of 16 with engine.device cuda")
        return value

    @field_validator("kv_dtype")
    @classmethod
    def _types_that_a_gpu_stores(cls, value: str, info: ValidationInfo) -> str:
        if info.data.get("device") == "cuda" and value == "float32":
            raise PydanticCustomError("kv_dtype", "must be auto or bfloat16 with engine.device cuda")
        return value


class _Overrides(_Section):
    """Some settings of another section, of its types and limits. What is not given is None here and not dumped."""

    @model_serializer(mode="wrap")
    def _given(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in dump(self).items() if name in self.model_fields_set}


def _overriding(cls: type[_Section], section: str) -> type[_Overrides]:
    fields: dict[str, Any] = {}
    for name, field in cls.model_fields.items():
        typed = (field.annotation, *field.metadata, Field(description=f"{section}.{name} of this pool"))
        fields[name] = (Annotated[typed], None)
    return create_model("_Overrides", __base__=_Overrides, **fields)


class PoolEngineSettings(_overriding(EngineSettings, "engine")):  # type: ignore[misc]
    """Engine settings that differ in a pool."""


class TransferSettings(_Section):
    mode: Literal["auto", "shm", "tcp"] = Field("auto", description="UCX transports between workers")
    host: str = Field(
        "127.0.0.1",
        description="address that the data plane listens on (UCX has no authentication); node: the node's address in Ray",
    )
    trusted_network: bool = Field(
        False,
        description="nobody else reaches the network of `host`: who does can write any address of a worker, for UCX asks "
        "nobody who he is. Where `host` isn't loopback a worker doesn't start without",
    )
    net_device: str = Field("", description="network device for TCP; empty: the one of `host`")


class HandoverSettings(_Section):
    heartbeat_s: float = Field(0.5, gt=0, description="each way, every session")
    lost_after_s: float = Field(
        2.5,
        gt=0,
        validate_default=True,
        description="silence after which the other side is lost; more than heartbeat_s",
    )
    lease_s: float = Field(5.0, gt=0, description="a grant's, from the last heartbeat that lists it")
    lease_margin_s: float = Field(
        0.5,
        ge=0,
        validate_default=True,
        description="a sender stops posting so long before the lease ends; with heartbeat_s less than lease_s",
    )
    repeat_s: float = Field(1.0, gt=0, description="silence after which Reserve or Commit is repeated")
    reserve_wait_s: float = Field(1.0, gt=0, description="a Reserve that doesn't fit waits so long, then NoRoom")
    router_expiry_s: float = Field(10.0, gt=0, description="after a router's session is lost")
    memory_s: float = Field(60.0, gt=0, description="what is over is remembered so long")

    @field_validator("lost_after_s")
    @classmethod
    def _heartbeats_come_before_a_loss(cls, value: float, info: ValidationInfo) -> float:
        heartbeat = info.data.get("heartbeat_s", 0.0)
        if value <= heartbeat:
            text = "must be more than handover.heartbeat_s {heartbeat}"
            raise PydanticCustomError("lost_after_s", text, {"heartbeat": heartbeat})
        return value

    @field_validator("lease_margin_s")
    @classmethod
    def _leases_are_renewed_before_they_end(cls, value: float, info: ValidationInfo) -> float:
        heartbeat, lease = info.data.get("heartbeat_s", 0.0), info.data.get("lease_s", math.inf)
        if value + heartbeat >= lease:
            text = "with handover.heartbeat_s {heartbeat} must be less than handover.lease_s {lease}"
            raise PydanticCustomError("lease_margin_s", text, {"heartbeat": heartbeat, "lease": lease})
        return value


class WorkerSettings(_Section):
    host: str = Field(
        "127.0.0.1",
        description="address that sessions listen on, ports are drawn anew; node: the node's address in Ray",
    )
    advertise_host: str = Field("", description="what others connect to; empty: host")
    token: SecretStr = Field(
        SecretStr(""),
        description="secret that sessions between routers and workers must bring; empty: none, on loopback only; "
        "rtp-llm serve draws one, on a Ray with a token of its own it is derived from that; not in Serve's `args`, which the "
        "dashboard shows",
    )
    token_file: str = Field(
        "", description="file with worker.token, at this path on each host; spaces around the secret don't count"
    )
    tls_cert_file: str = Field(
        "",
        description="PEM, with tls_key_file and tls_ca_file: sessions speak TLS, and both ends show a certificate that the "
        "authority has signed. At these paths on each host; empty: not encrypted",
    )
    tls_key_file: str = Field("", description="PEM, of tls_cert_file")
    tls_ca_file: str = Field("", description="PEM, of the authority; best one of this deployment alone")
    tls_name: str = Field("rtp-llm", min_length=1, description="DNS name that all certificates have")
    max_queued_tokens: int = Field(16384, ge=1, description="prompt tokens queued before a new Submit is Busy")
    drain_timeout_s: float = Field(120.0, gt=0, description="a draining worker finishes what it has within")
    directory: str = Field("", description="name of the membership actor; default: of application and model")


def _mapping(value: Any) -> Any:
    """On the command line and in the environment a mapping is JSON."""
    return json.loads(value) if isinstance(value, str) else value


class PoolSettings(_Section):
    replicas: int = Field(1, ge=0, description="workers")
    max_surge_percent: int = Field(
        0,
        ge=0,
        le=100,
        description="of the workers that a rolling update starts before others leave; 100 needs room for twice the pool",
    )
    num_cpus: float = Field(0.0, ge=0, description="CPUs that Ray reserves a worker")
    num_gpus: float | None = Field(
        None, ge=0, description="GPUs that Ray reserves a worker; default: 1 with engine.device cuda, else 0"
    )
    resources: dict[str, float] = Field(default_factory=dict, description="Ray resources of a worker")
    label_selector: dict[str, str] = Field(
        default_factory=dict, description="labels of the Ray nodes that take a worker: `{pool: prefill}`"
    )
    engine: PoolEngineSettings = PoolEngineSettings()

    _mappings = field_validator("resources", "label_selector", mode="before")(_mapping)


class PoolAutoscalingSettings(_Section):
    """What both pools have."""

    min: int = Field(1, ge=0, description="fewest workers; 0: all go while nothing is asked")
    max: int | None = Field(
        None,
        ge=1,
        validate_default=True,
        description="most workers; default: there are always as many as `replicas` says",
    )
    initial: int | None = Field(
        None, ge=0, validate_default=True, description="workers at the start; default: `replicas`, within min and max"
    )
    upscale_delay_s: float = Field(2.0, ge=0, description="more workers are needed for so long before they are started")
    downscale_delay_s: float = Field(120.0, ge=0, description="fewer workers would do for so long before some leave")
    downscale_to_zero_delay_s: float = Field(
        300.0, ge=0, description="the last worker is idle for so long before it leaves"
    )

    @field_validator("max")
    @classmethod
    def _on_if_asked(cls, value: int | None, info: ValidationInfo) -> int | None:
        least = info.data.get("min", 0)
        if value is not None and value < least:
            raise PydanticCustomError("max", "must be at least min {min}", {"min": least})
        return value

    @field_validator("initial")
    @classmethod
    def _within(cls, value: int | None, info: ValidationInfo) -> int | None:
        least, most = info.data.get("min", 0), info.data.get("max")
        if value is not None and most is not None and not least <= value <= most:
            text = "must be from min {min} to max {max}"
            raise PydanticCustomError("initial", text, {"min": least, "max": most})
        return value

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> PoolAutoscalingSettings:
        if self.max is None:
            for name, field in type(self).model_fields.items():
                if getattr(self, name) != field.default:
                    raise PydanticCustomError("max", "{name} is set, so max must be", {"name": name})
        return self


class PrefillAutoscalingSettings(PoolAutoscalingSettings):
    queue_share: float = Field(
        0.5, gt=0, description="part of router.ttft_target_ms that a prompt is predicted to wait for its turn, at most"
    )
    utilization: float = Field(0.7, gt=0, le=1, description="part of the time that prefill workers compute, at most")


class DecodeAutoscalingSettings(PoolAutoscalingSettings):
    itl_share: float = Field(
        0.9, gt=0, description="part of engine.itl_target_ms that a decode step is predicted to take, at most"
    )
    occupancy: float = Field(
        0.8, gt=0, le=1, description="part of the KV pools, and of engine.max_num_seqs, that is taken, at most"
    )


class PrefillSettings(PoolSettings):
    autoscaling: PrefillAutoscalingSettings = PrefillAutoscalingSettings()


class DecodeSettings(PoolSettings):
    autoscaling: DecodeAutoscalingSettings = DecodeAutoscalingSettings()


class AutoscalingSettings(_Section):
    """Of pools that have a max: docs/autoscaling.md."""

    decode_per_prefill: float | None = Field(
        None,
        gt=0,
        description="decode workers to each prefill worker, fixed: the pool that needs more decides; default: each as it needs",
    )
    window_s: float = Field(15.0, gt=0, validate_default=True, description="figures are means over so long")
    interval_s: float = Field(
        0.5, gt=0, validate_default=True, description="how often they are taken; less than window_s"
    )

    @field_validator("interval_s")
    @classmethod
    def _several_in_a_window(cls, value: float, info: ValidationInfo) -> float:
        window = info.data.get("window_s", math.inf)
        if value >= window:
            raise PydanticCustomError(
                "interval_s", "must be less than autoscaling.window_s {window}", {"window": window}
            )
        return value


class RouterSettings(_Section):
    replicas: int = Field(1, ge=1, description="router processes")
    max_surge_percent: int = Field(
        100,
        ge=0,
        le=100,
        description="of the routers that a rolling update starts before others leave; 0 with one router: none for some seconds",
    )
    resources: dict[str, float] = Field(
        default_factory=dict,
        description="Ray resources of a router: `{node:__internal_head__: 0.001}` keeps it on the head",
    )
    label_selector: dict[str, str] = Field(
        default_factory=dict, description="labels of the Ray nodes that take a router"
    )
    policy: str | dict[str, float] = Field(
        "least_loaded",
        description="placement policy, or several by weights (`{cost: 1, affinity: 0.5}`): docs/placement.md",
    )
    session_header: str = Field(
        "x-session-id",
        pattern=r"^[A-Za-z0-9-]+$",
        description="header that names the session of a request, for the policy `affinity`; without it the field `user` does",
    )
    ttft_target_ms: float = Field(
        1000.0, gt=0, description="time to the first token that the policy `cost` and autoscaling aim at"
    )
    max_body_bytes: int = Field(8 << 20, ge=1024, description="larger request bodies are refused")
    upload_timeout_s: float = Field(20.0, gt=0, description="a request body of which nothing comes for so long: 408")
    body_timeout_s: float = Field(
        30.0, gt=0, description="reading a large body (in a process of its own) takes longer: 503"
    )
    max_choices: int = Field(128, ge=1, description="answers of one HTTP request (prompts times n); more: 400")
    tenant_weights: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(
        default_factory=dict,
        description="what tenants (names in http.api_keys_file) get of the workers where several wait, against 1 of those that "
        "are not named: `{alice: 2}`",
    )
    min_priority: int = Field(
        -(2**31), ge=-(2**31), le=2**31 - 1, description="least `priority` that a request may ask for; less: 400"
    )
    max_waiting: int = Field(4096, ge=1, description="requests that may be read or wait for a worker; more: 429")
    request_timeout_s: float = Field(
        600.0,
        gt=0,
        description="deadline of a request, which may ask for less; an answer that nobody limited ends there",
    )
    ttft_timeout_s: float = Field(
        600.0, gt=0, description="deadline of a request's first token; a request may ask for less"
    )
    queue_timeout_s: float = Field(60.0, gt=0, description="a request that no worker takes within: 503")
    client_buffer_tokens: int = Field(8192, ge=1, description="tokens buffered for a slow client before it is cut")
    ping_s: float = Field(15.0, gt=0, description="comment line on a silent event stream")
    max_losses: int = Field(3, ge=1, description="lost workers under one request before it fails")
    retry_burst: int = Field(256, ge=1, description="answers of lost workers that all routers try again at once")
    retry_rate: float = Field(32.0, gt=0, description="and a second when more are lost; the others wait for their turn")

    _mappings = field_validator("resources", "label_selector", "tenant_weights", mode="before")(_mapping)

    @field_validator("policy", mode="before")
    @classmethod
    def _mixed(cls, value: Any) -> Any:
        """A mixture of policies may come as JSON."""
        mixed = _mapping(value) if isinstance(value, str) and value.lstrip().startswith("{") else value
        if isinstance(mixed, dict):
            if not mixed:
                raise PydanticCustomError("policy", "must name at least one policy")
            for name, weight in mixed.items():
                if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
                    text = "the weight of {name} must be a number above 0"
                    raise PydanticCustomError("policy", text, {"name": name})
        return mixed


LIVE_ROUTER_SETTINGS = (  # that Router.reconfigure takes over
    "client_buffer_tokens",
    "max_losses",
    "max_waiting",
    "ping_s",
    "queue_timeout_s",
    "request_timeout_s",
    "retry_burst",
    "retry_rate",
    "tenant_weights",
    "ttft_timeout_s",
    "upload_timeout_s",
)


class HttpSettings(_Section):
    host: str = Field("127.0.0.1", description="address of the HTTP endpoint")
    port: int = Field(8000, ge=0, le=65535, description="port of the HTTP endpoint")
    route_prefix: str = Field(
        "/",
        pattern=r"^/$|^(/[\w.~-]+)+$",
        description="path under which the application answers; others may stand beside it on one Ray",
    )
    hard_stop_after_s: int = Field(3600, ge=1, description="longest stream that survives a proxy reload")
    api_keys_file: str = Field(
        "",
        description="file of lines NAME KEY: each request under /v1 brings one of the keys (`Authorization: Bearer KEY`), the "
        "key's name is its tenant; empty: no key is asked for. At this path on each router's host",
    )
    admin_key_file: str = Field(
        "",
        description="file with the key that /metrics, /pause, /resume and /update_weights ask for; empty: they are open, or, "
        "with api_keys_file, closed",
    )
    cors_origins: str = Field(
        "", description="origins whose pages may call from a browser, with commas between; `*`: all"
    )

    stored_responses: int = Field(
        4096,
        ge=0,
        description="responses of /v1/responses that a router keeps; the least recently used go first; 0: none",
    )
    stored_responses_bytes: int = Field(64 << 20, ge=0, description="memory that they take; 0: none are kept")

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _joined(cls, value: Any) -> Any:
        """In YAML it may be a list."""
        listed = isinstance(value, list) and all(isinstance(origin, str) for origin in value)
        return ",".join(value) if listed else value


class OtelSettings(_Section):
    traces_endpoint: str = Field(
        "",
        description="OTLP collector that gets spans of requests (extra `otel`): `http://host:4317`, or "
        "`http://host:4318/v1/traces`; empty: the one that OTEL_EXPORTER_OTLP_TRACES_ENDPOINT or OTEL_EXPORTER_OTLP_ENDPOINT "
        "names, if any",
    )
    traces_protocol: Literal["", "grpc", "http/protobuf"] = Field(
        "",
        description="what it speaks; empty: as OTEL_EXPORTER_OTLP_PROTOCOL says, else http/protobuf where traces_endpoint has "
        "a path, and grpc where not",
    )


class PoolSizes(NamedTuple):
    """Workers of a pool."""

    least: int
    initial: int
    most: int


class Config(_Section):
    """All settings of a deployment."""

    model: ModelSettings = ModelSettings()
    engine: EngineSettings = EngineSettings()
    transfer: TransferSettings = TransferSettings()
    handover: HandoverSettings = HandoverSettings()
    worker: WorkerSettings = WorkerSettings()
    prefill: PrefillSettings = PrefillSettings()
    decode: DecodeSettings = DecodeSettings()
    autoscaling: AutoscalingSettings = AutoscalingSettings()
    router: RouterSettings = RouterSettings()
    http: HttpSettings = HttpSettings()
    otel: OtelSettings = OtelSettings()

    @field_validator("autoscaling")
    @classmethod
    def _a_ratio_needs_two_pools(cls, value: AutoscalingSettings, info: ValidationInfo) -> AutoscalingSettings:
        pools = [info.data[pool.value] for pool in Pool if pool.value in info.data]
        if value.decode_per_prefill is not None and any(pool.autoscaling.max is None for pool in pools):
            text = "decode_per_prefill needs prefill.autoscaling.max and decode.autoscaling.max"
            raise PydanticCustomError("decode_per_prefill", text)
        return value

    def pool(self, pool: Pool) -> PoolSettings:
        return {Pool.PREFILL: self.prefill, Pool.DECODE: self.decode}[pool]

    def autoscaling_of(self, pool: Pool) -> PoolAutoscalingSettings:
        return {Pool.PREFILL: self.prefill.autoscaling, Pool.DECODE: self.decode.autoscaling}[pool]

    @property
    def is_autoscaled(self) -> bool:
        """Any pool is."""
        return any(self.autoscaling_of(pool).max is not None for pool in Pool)

    def sizes_of(self, pool: Pool) -> PoolSizes:
        """Of a pool that isn't autoscaled all three are its `replicas`."""
        replicas, settings = self.pool(pool).replicas, self.autoscaling_of(pool)
        if settings.max is None:
            return PoolSizes(replicas, replicas, replicas)
        initial = settings.initial
        if initial is None:
            initial = min(max(replicas, settings.min), settings.max)
        return PoolSizes(settings.min, initial, settings.max)

    @property
    def max_workers(self) -> int:
        """Of all pools."""
        return sum(self.sizes_of(pool).most for pool in Pool)

    @property
    def initial_workers(self) -> int:
        """Of all pools."""
        return sum(self.sizes_of(pool).initial for pool in Pool)

    def engine_of(self, pool: Pool) -> EngineSettings:
        """Engine settings of this pool: the common ones, overridden by its own.

        Raises:
            ConfigError: one of its own doesn't go with the others.
        """
        own = self.pool(pool).engine.model_dump()
        return _validated(EngineSettings, {**self.engine.model_dump(), **own}, f"{pool}.engine")

    def num_gpus_of(self, pool: Pool) -> float:
        """GPUs that a worker of this pool reserves."""
        given = self.pool(pool).num_gpus
        return given if given is not None else float(self.engine_of(pool).device == "cuda")

    def with_token(self) -> Config:
        """The same with a random worker.token, unless one is set, or a file of one."""
        if self.worker.token.get_secret_value() or self.worker.token_file:
            return self
        return self._with_worker_token(secrets.token_urlsafe(32))

    def reconfigured(self, router: Mapping[str, Any]) -> Config:
        """The same with these settings of the section router, which a running router takes over.

        Raises:
            ConfigError: one is unknown, wrong, or not for a running router.
        """
        for name in router:
            if name not in LIVE_ROUTER_SETTINGS:
                raise ConfigError(
                    f"router.{name} can't be changed while it runs, only {', '.join(LIVE_ROUTER_SETTINGS)}"
                )
        found = load_config(overrides={f"router.{name}": value for name, value in router.items()}, environ={}).router
        changed = self.router.model_copy(update={name: getattr(found, name) for name in router})
        if changed.request_timeout_s > self.router.request_timeout_s:
            raise ConfigError(
                f"router.request_timeout_s {changed.request_timeout_s:g} exceeds that of the deployment, "
                f"{self.router.request_timeout_s:g}, for which Serve waits when it stops a router"
            )
        return self.model_copy(update={"router": changed})

    def with_token_read(self) -> Config:
        """The same with worker.token out of worker.token_file, if that is set. On the host where the token is needed.

        Raises:
            ConfigError: both are set, the file can't be read, or has nothing in it.
        """
        if not self.worker.token_file:
            return self
        if self.worker.token.get_secret_value():
            raise ConfigError(f"worker.token is set, so is worker.token_file {self.worker.token_file}")
        return self._with_worker_token(read_secret("worker.token_file", self.worker.token_file))

    def with_token_derived(self, key: str) -> Config:
        """The same with a worker.token that follows from `key`, another secret which all of this fleet's processes have, and
        from the fleet's directory; unless one is set. REQUIRES: worker.directory is named."""
        if self.worker.token.get_secret_value() or not key:
            return self
        what = f"rtp_llm worker.token {self.worker.directory}"
        return self._with_worker_token(hmac.new(key.encode(), what.encode(), "sha256").hexdigest())

    def _with_worker_token(self, token: str) -> Config:
        return self.model_copy(update={"worker": self.worker.model_copy(update={"token": SecretStr(token)})})

    def with_model_found(self) -> Config:
        """The same with a directory as model.path: of a model by its hub's name that of its snapshot in this host's cache.

        Raises:
            ConfigError: a directory has no model.revision.
            ModelLoadError: the cache doesn't have it; says what was looked for, and where.
        """
        model = self.model
        if not hub_cache.is_hub_name(model.path):
            if model.revision is not None:
                raise ConfigError(f"model.revision: {model.path} is no model's name in a hub, got {model.revision!r}")
            return self
        found = hub_cache.snapshot(model.path, model.revision or "main")
        named = {"path": str(found), "revision": None, "served_name": model.served_name or model.path}
        return self.model_copy(update={"model": model.model_copy(update=named)})

    def with_absolute_path(self) -> Config:
        """The same, with_model_found(), for processes with another working directory."""
        return self.model_copy(
            update={
                "model": _with_absolute(self.with_model_found().model, "path"),
                "worker": _with_absolute(self.worker, "token_file", "tls_cert_file", "tls_key_file", "tls_ca_file"),
                "http": _with_absolute(self.http, "api_keys_file", "admin_key_file"),
            }
        )

    def directory_of(self, application: str) -> str:
        """The membership actor of this Serve application: two on one Ray are two fleets, also when they serve one model."""
        return self.worker.directory or f"rtp_llm-{application}-{self.served_name}"

    @property
    def served_name(self) -> str:
        return self.model.served_name or Path(self.model.path).resolve().name

    @property
    def model_names(self) -> tuple[str, ...]:
        """Under which requests may ask; the first is the served one."""
        others = (name.strip() for name in self.model.aliases.split(","))
        return (self.served_name, *dict.fromkeys(name for name in others if name and name != self.served_name))


def load_config(
    file: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Config:
    """Defaults, then the YAML `file`, then RTP_LLM_SECTION__FIELD variables, then `overrides` ({"engine.max_num_seqs": 8}).

    Raises:
        ConfigError: the file can't be read, or a setting is unknown or wrong; names path (or variable) and value.
    """
    tree: dict[str, Any] = _read_yaml(file) if file is not None else {}
    for path, value in _from_environment(os.environ if environ is None else environ).items():
        _set(tree, path, value)
    for path, value in (overrides or {}).items():
        _set(tree, path, value)
    config = _validated(Config, tree, "")
    for pool in Pool:
        config.engine_of(pool)
    return config


def _with_absolute(section: SectionT, *names: str) -> SectionT:
    """Paths that begin with ~ stay: each host has its own."""
    paths = {name: path for name in names if (path := getattr(section, name)) and not path.startswith("~")}
    return section.model_copy(update={name: str(Path(path).absolute()) for name, path in paths.items()})


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return host == "localhost"


def read_secret(setting: str, path: str) -> str:
    """
    Raises:
        ConfigError: the file can't be read, or has nothing in it; its text is in no error.
    """
    try:
        found = Path(path).expanduser().read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigError(f"{setting} {path}: {error.strerror}") from error
    except UnicodeDecodeError:
        raise ConfigError(f"{setting} {path}: not UTF-8") from None
    if not found:
        raise ConfigError(f"{setting} {path}: nothing in it")
    return found


def settings() -> dict[str, Any]:
    """Every setting's path → pydantic FieldInfo, in order: what the CLI and the documentation are generated from."""
    return dict(_settings_in("", Config))


def _settings_in(prefix: str, section: type[BaseModel]) -> Iterator[tuple[str, Any]]:
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, _Section):
            yield from _settings_in(f"{prefix}{name}.", field.annotation)
        else:
            yield f"{prefix}{name}", field


def _read_yaml(file: str | Path) -> dict[str, Any]:
    import yaml

    try:
        tree = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"config file {file}: {error}") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"config file {file}: expected a mapping of sections, found {type(tree).__name__}")
    return tree


def _from_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """{setting: value}. A variable that looks like a setting and isn't one is refused; others (RTP_LLM_ISA) are not ours."""
    names = {ENVIRONMENT_PREFIX + path.upper().replace(".", "__"): path for path in settings()}
    sections = tuple(f"{ENVIRONMENT_PREFIX}{section.upper()}__" for section in Config.model_fields)
    for name in environ:
        if name.startswith(sections) and name not in names:
            raise ConfigError(f"{name}: there is no such setting")
    return {names[name]: value for name, value in environ.items() if name in names}


def _set(tree: dict[str, Any], path: str, value: Any) -> None:
    *sections, name = path.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"{section}: expected a mapping, found {tree!r}")
    tree[name] = value


def _validated(cls: type[SectionT], tree: Mapping[str, Any], prefix: str) -> SectionT:
    try:
        return cls.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(str(part) for part in (prefix, *first["loc"]) if part != "")
        got = "" if path == "worker.token" else f", got {first.get('input')!r}"
        raise ConfigError(f"{path}: {first['msg']}{got}") from (None if path == "worker.token" else error)
