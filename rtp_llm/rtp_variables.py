"""RTP-LLM's environment variables, and the arguments of its ModelConfig, in settings of the config tree: each is a setting,
changes no answer, or is refused by name unless it asks for nothing. docs/rtp-llm.md is checked against these tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from rtp_llm.config import load_config
from rtp_llm.errors import ConfigError, shortened
from rtp_llm.model.config import read_model_config

# RTP-LLM's name of a kind of model → that of config.json.
MODEL_TYPES: Mapping[str, str] = MappingProxyType({"llama": "LlamaForCausalLM", "qwen_3": "Qwen3ForCausalLM"})
DTYPES: Mapping[str, str] = MappingProxyType(
    {"AUTO": "auto", "BF16": "bfloat16", "BFLOAT16": "bfloat16", "FP32": "float32", "FLOAT32": "float32"}
)
MODEL_TYPE, TOKENIZER = "model type", "tokenizer"  # what is compared with the model, and is no setting


class Meaning(Protocol):
    """What a variable says."""

    @property
    def words(self) -> str:
        """For the documentation."""

    def settings(self, text: str) -> dict[str, Any]:
        """
        Raises:
            ValueError: what it must be.
        """


@dataclass(frozen=True)
class Setting:
    """Its value is that of the setting `path`, `scale` times; values of `unset` say nothing."""

    path: str
    scale: int = 1
    unset: tuple[str, ...] = ()
    note: str = ""

    @property
    def words(self) -> str:
        unset = f"{' or '.join(f'`{each}`' for each in self.unset)} says nothing" if self.unset else ""
        return "; ".join(filter(None, (f"`{self.path}`", self.note, unset)))

    def settings(self, text: str) -> dict[str, Any]:
        if text in self.unset:
            return {}
        if self.scale == 1:
            return {self.path: text}
        if not (text.isascii() and text.isdigit() and len(text) < 16):
            raise ValueError("must be a number of MiB")
        return {self.path: int(text) * self.scale}


@dataclass(frozen=True)
class Switch:
    """A setting that is on or off."""

    path: str

    @property
    def words(self) -> str:
        return f"`{self.path}`; `1` or `0`"

    def settings(self, text: str) -> dict[str, Any]:
        return {self.path: is_on(text)}


@dataclass(frozen=True)
class Dtype:
    """The type that weights are multiplied in."""

    words: str = (
        "`model.dtype`; `BF16`, `FP32`, or `AUTO`, the checkpoint's. Half precision and quantized weights are refused"
    )

    def settings(self, text: str) -> dict[str, Any]:
        if text.upper() not in DTYPES:
            raise ValueError(
                "must be BF16, FP32 or AUTO, the checkpoint's: neither FP16 nor quantized weights are computed"
            )
        dtype = DTYPES[text.upper()]
        return {} if dtype == "auto" else {"model.dtype": dtype}


@dataclass(frozen=True)
class Compared:
    """It has to agree with the model."""

    what: str
    words: str

    def settings(self, text: str) -> dict[str, Any]:
        return {self.what: text}


@dataclass(frozen=True)
class Refused:
    """Only a value of `neutral`, which asks for nothing, is taken; `why`: what it would ask for."""

    why: str
    neutral: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        but = f" but {', '.join(f'`{each}`' for each in self.neutral)}" if self.neutral else ""
        return f"refused{but}: {self.why}"

    def settings(self, text: str) -> dict[str, Any]:
        if text.lower() not in self.neutral:
            raise ValueError(f"is not supported ({self.why})")
        return {}


@dataclass(frozen=True)
class Quiet:
    """It changes no answer."""

    why: str

    @property
    def words(self) -> str:
        return f"changes no answer: {self.why}"

    def settings(self, text: str) -> dict[str, Any]:
        return {}


OFF = ("0", "false", "off")
ONE = ("1",)
ON = ("1", "true", "on")
NONE = ("none", "null")

VARIABLES: Mapping[str, Meaning] = MappingProxyType(
    {
        "CHECKPOINT_PATH": Setting("model.path", note="a directory, or a model's name in the hub's cache"),
        "TOKENIZER_PATH": Compared(TOKENIZER, "the model's own is used: refused unless it is CHECKPOINT_PATH"),
        "MODEL_TYPE": Compared(
            MODEL_TYPE,
            f"config.json says it: refused unless that agrees; {', '.join(f'`{name}`' for name in MODEL_TYPES)}",
        ),
        "MAX_SEQ_LEN": Setting("model.max_model_len", unset=("0",)),
        "WEIGHT_TYPE": Dtype(),
        "ACT_TYPE": Dtype(),
        "CONCURRENCY_LIMIT": Setting("engine.max_num_seqs", note="of each worker; more wait"),
        "KV_CACHE_MEM_MB": Setting("engine.kv_cache_bytes", scale=1 << 20, unset=("-1", "0")),
        "TEST_BLOCK_NUM": Setting("engine.num_kv_blocks"),
        "SEQ_SIZE_PER_BLOCK": Setting("engine.block_tokens"),
        "MAX_BATCH_TOKENS_SIZE": Setting("engine.max_num_batched_tokens", unset=("0",)),
        "REUSE_CACHE": Switch("engine.enable_prefix_caching"),
        "USE_BLOCK_CACHE": Switch("engine.enable_prefix_caching"),
        "START_PORT": Setting("http.port", note="other ports are drawn"),
        "FRONTEND_SERVER_COUNT": Setting("router.replicas"),
        "INT8_KV_CACHE": Refused("a quantized KV cache", OFF),
        "FP8_KV_CACHE": Refused("a quantized KV cache", OFF),
        "QUANTIZATION": Refused("quantized weights", NONE),
        "PTUNING_PATH": Refused("P-tuning", NONE),
        "LORA_INFO": Refused("LoRA", ("{}",)),
        "EXTRA_DATA_PATH": Refused("multimodal models", NONE),
        "VIT_SEPARATION": Refused("multimodal models", ("0",)),
        "MULTI_TASK_PROMPT": Refused("prompts by task_id", NONE),
        "MULTI_TASK_PROMPT_STR": Refused("prompts by task_id", NONE),
        "TASK_TYPE": Refused("embeddings and other tasks", ("language_model",)),
        "ROLE_TYPE": Refused(
            "one role: a deployment has both pools, prefill.replicas and decode.replicas", ("pdfusion",)
        ),
        "SP_TYPE": Refused("speculation", NONE),
        "SP_MODEL_TYPE": Refused("speculation", NONE),
        "SP_CHECKPOINT_PATH": Refused("speculation", NONE),
        "GEN_NUM_PER_CIRCLE": Refused("speculation", ("0", "1")),
        "TP_SIZE": Refused("tensor parallelism", ONE),
        "PP_SIZE": Refused("pipeline parallelism", ONE),
        "EP_SIZE": Refused("expert parallelism", ONE),
        "DP_SIZE": Refused("data parallelism: pools have more workers instead", ONE),
        "WORLD_SIZE": Refused("an engine of several devices", ONE),
        "ASYNC_MODE": Quiet("requests are always batched as they come"),
        "PRE_ALLOCATE_OP_MEM": Quiet("memory is always allocated at the start"),
        "TP_SPLIT_EMB_AND_LMHEAD": Quiet("there is one device an engine"),
        "WARM_UP": Quiet("an engine always warms up"),
        "ENABLE_CUDA_GRAPH": Quiet("how steps are launched is the engine's own"),
        "LOAD_CKPT_NUM_PROCESS": Quiet("weights are read by one process"),
        "DEVICE_RESERVE_MEMORY_BYTES": Quiet("engine.gpu_memory_utilization says how much a worker takes"),
        "HOST_RESERVE_MEMORY_BYTES": Quiet("engine.kv_cache_share says how much a worker takes"),
        "FT_SERVER_TEST": Quiet("what is said goes to the terminal"),
        "PY_LOG_LEVEL": Quiet("Ray's logs have all"),
        "LOG_LEVEL": Quiet("Ray's logs have all"),
        "HF_ENDPOINT": Quiet("nothing is downloaded"),
    }
)

# Argument of ModelConfig → the variable that means the same.
MODEL_CONFIG: Mapping[str, str] = MappingProxyType(
    {
        "model_type": "MODEL_TYPE",
        "ckpt_path": "CHECKPOINT_PATH",
        "tokenizer_path": "TOKENIZER_PATH",
        "async_mode": "ASYNC_MODE",
        "weight_type": "WEIGHT_TYPE",
        "act_type": "ACT_TYPE",
        "max_seq_len": "MAX_SEQ_LEN",
        "seq_size_per_block": "SEQ_SIZE_PER_BLOCK",
        "gen_num_per_circle": "GEN_NUM_PER_CIRCLE",
        "ptuning_path": "PTUNING_PATH",
        "lora_infos": "LORA_INFO",
    }
)


def is_on(text: str) -> bool:
    if text.lower() not in (*ON, *OFF):
        raise ValueError("must be 1 or 0")
    return text.lower() in ON


def settings_of(given: Mapping[str, str], names: Mapping[str, str] | None = None) -> dict[str, Any]:
    """{setting: value} of variables; of arguments of other `names`, which are variables' meanings. Empty values say nothing.

    Raises:
        ConfigError: a value is wrong or not supported, or two don't agree; names the variable and the value.
        ModelError: what is to be compared with the model finds none.
    """
    settings = _Settings()
    for name, text in given.items():
        if text := text.strip():
            settings.add(name, VARIABLES[(names or {}).get(name, name)], text)
    return settings.compared()


@dataclass
class _Settings:
    """What was said so far, and by whom."""

    found: dict[str, Any] = field(default_factory=dict)
    said: dict[str, tuple[str, str]] = field(default_factory=dict)  # path → variable, text

    def add(self, name: str, meaning: Meaning, text: str) -> None:
        try:
            taken = meaning.settings(text)
        except ValueError as error:
            raise ConfigError(f"{name} {error}, got {shortened(text)}") from None
        for path, value in taken.items():
            if path in self.found and self.found[path] != value:
                other, others = self.said[path]
                raise ConfigError(f"{name} is {shortened(text)}, but {other} is {shortened(others)}: both are {path}")
            if path not in (MODEL_TYPE, TOKENIZER):
                _check(name, path, value)
            self.found[path], self.said[path] = value, (name, text)

    def compared(self) -> dict[str, Any]:
        """The settings, once they agree with the model."""
        settings = {path: value for path, value in self.found.items() if path not in (MODEL_TYPE, TOKENIZER)}
        if len(settings) < len(self.found):
            config = load_config(overrides=settings)
            self._compare_tokenizer(config.model.path)
            self._compare_type(config.with_model_found().model.path)
        return settings

    def _compare_tokenizer(self, model: str) -> None:
        name, path = self.said.get(TOKENIZER, ("", model))
        if Path(path).resolve() != Path(model).resolve():
            raise ConfigError(f"{name} is not supported, got {path!r}: the tokenizer of the model {model} is used")

    def _compare_type(self, directory: str) -> None:
        if MODEL_TYPE not in self.said:
            return
        name, asked = self.said[MODEL_TYPE]
        if asked not in MODEL_TYPES:
            raise ConfigError(f"{name}: there are {', '.join(MODEL_TYPES)}, got {shortened(asked)}")
        found = read_model_config(directory).architecture
        if found != MODEL_TYPES[asked]:
            raise ConfigError(f"{name} {asked} is {MODEL_TYPES[asked]}, but {directory}/config.json says {found}")


def _check(name: str, path: str, value: Any) -> None:
    try:
        load_config(overrides={path: value}, environ={})
    except ConfigError as error:
        raise ConfigError(f"{name}: {error.message}") from None
