"""ModelFactory and ModelConfig, with RTP-LLM's names: a model in this process, for a Pipeline."""

from __future__ import annotations

import enum
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from rtp_llm.config import load_config
from rtp_llm.errors import ConfigError, shortened
from rtp_llm.llm import LLM
from rtp_llm.model.tokenizer import Tokenizer
from rtp_llm.rtp_variables import MODEL_CONFIG, VARIABLES, settings_of


class WEIGHT_TYPE(enum.Enum):  # noqa: N801 - RTP-LLM's name
    """Types that RTP-LLM's scripts name. Not all are computed: docs/rtp-llm.md."""

    AUTO = "auto"
    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"
    INT8 = "int8"
    INT4 = "int4"
    FP8 = "fp8"


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What RTP-LLM's has. None, 0 and "" say nothing: then RTP_LLM_… variables count, else the defaults of the config tree.

    `weight_type` and `act_type` may be WEIGHT_TYPE's or their names. docs/rtp-llm.md says what each becomes.
    """

    model_type: str = ""
    ckpt_path: str | Path = ""
    tokenizer_path: str | Path = ""
    async_mode: bool | None = None
    weight_type: WEIGHT_TYPE | str | None = None
    act_type: WEIGHT_TYPE | str | None = None
    max_seq_len: int = 0
    seq_size_per_block: int | None = None
    gen_num_per_circle: int = 1
    ptuning_path: str | Path | None = None
    lora_infos: Mapping[str, str] | None = None

    def settings(self) -> dict[str, Any]:
        """{setting: value}

        Raises:
            ConfigError: an argument is wrong or not supported; names it and its value.
        """
        said = {each.name: _text(getattr(self, each.name)) for each in fields(self)}
        return settings_of(said, MODEL_CONFIG)


class Model:
    """A loaded model with its engine; pipelines share it. stop() ends it, and them."""

    def __init__(self, llm: LLM) -> None:
        self.llm = llm
        self.is_stopped = False

    @property
    def tokenizer(self) -> Tokenizer:
        return self.llm.get_tokenizer()

    def stop(self) -> None:
        """End the engine's thread. Idempotent."""
        self.is_stopped = True
        self.llm.close()


class ModelFactory:
    """Each of these loads the model.

    Raises:
        ModelError: its files can't be served, or aren't there.
        ConfigError: a setting is wrong or not supported; names it and its value.
    """

    @staticmethod
    def from_huggingface(
        path: str | Path, revision: str | None = None, model_config: ModelConfig | None = None
    ) -> Model:
        """`path`: a directory, or a model's name in the hub's cache, then with a `revision`. Nothing is downloaded."""
        if not isinstance(path, str | Path) or not str(path).strip():
            raise ConfigError(f"path must be a directory, or a model's name, got {shortened(path)}")
        config = ModelConfig() if model_config is None else model_config
        if not isinstance(config, ModelConfig):
            raise ConfigError(f"model_config must be a ModelConfig, got {shortened(config)}")
        if config.ckpt_path and Path(config.ckpt_path).resolve() != Path(path).resolve():
            raise ConfigError(f"ckpt_path is {str(config.ckpt_path)!r}, but path is {str(path)!r}")
        return _loaded(replace(config, ckpt_path=path).settings() | ({"model.revision": revision} if revision else {}))

    @staticmethod
    def from_model_config(model_config: ModelConfig) -> Model:
        """Of its ckpt_path."""
        if not model_config.ckpt_path:
            raise ConfigError("ModelConfig's ckpt_path is not given")
        return _loaded(model_config.settings())

    @staticmethod
    def create_from_env() -> Model:
        """Of RTP-LLM's environment variables, CHECKPOINT_PATH and others."""
        return _loaded(settings_of({name: os.environ[name] for name in VARIABLES if name in os.environ}))


def _loaded(settings: Mapping[str, Any]) -> Model:
    return Model(LLM.of_config(load_config(overrides=settings)))


def _text(value: Any) -> str:
    """As a variable would hold it; empty: nothing is said."""
    if value is None:
        return ""
    if isinstance(value, enum.Enum):
        return str(value.name)
    if isinstance(value, bool):
        return str(int(value))
    return json.dumps(value) if isinstance(value, Mapping) else str(value)
