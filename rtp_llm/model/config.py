"""config.json and generation_config.json of Hugging Face, typed; what the engine can't compute is refused by name."""

from __future__ import annotations

import dataclasses
import logging
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rtp_llm.errors import InvalidRequestError, ModelLoadError, UnsupportedModelError, shortened
from rtp_llm.model.files import read_json, read_json_if_present
from rtp_llm.model.rope import Rope, read_rope
from rtp_llm.model.special_tokens import eos_token_id
from rtp_llm.sampling_params import FIELDS, SamplingParams

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Architecture:
    """What the class of transformers assumes where config.json is silent."""

    qk_norm: bool
    has_mlp_bias: bool
    max_position_embeddings: int
    head_dim: int | None  # None: hidden_size / num_attention_heads


ARCHITECTURES = {
    "LlamaForCausalLM": _Architecture(qk_norm=False, has_mlp_bias=True, max_position_embeddings=2048, head_dim=None),
    "Qwen3ForCausalLM": _Architecture(qk_norm=True, has_mlp_bias=False, max_position_embeddings=32768, head_dim=128),
}

# Hugging Face's name of an activation → the engine's.
ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_pytorch_tanh",
    "gelu_new": "gelu_pytorch_tanh",
}

MAX_COUNT = 2**31 - 1

# What generation_config.json may say beside FIELDS that would change answers, and isn't applied: → the values that ask for
# nothing.
_NOT_APPLIED: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {
        "encoder_repetition_penalty": (1.0,),
        "no_repeat_ngram_size": (0,),
        "encoder_no_repeat_ngram_size": (0,),
        "typical_p": (1.0,),
        "epsilon_cutoff": (0.0,),
        "eta_cutoff": (0.0,),
        "penalty_alpha": (0.0,),
        "guidance_scale": (1.0,),
        "num_beams": (1,),
        "bad_words_ids": ([],),
        "sequence_bias": ({}, []),
        "suppress_tokens": ([],),
        "begin_suppress_tokens": ([],),
        "forced_bos_token_id": (),
        "forced_eos_token_id": (),
        "exponential_decay_length_penalty": (),
        "min_length": (0,),
        "min_new_tokens": (0,),
        "max_new_tokens": (),
        "max_time": (),
        "stop_strings": ("", []),
        "watermarking_config": ({},),
    }
)

# The engine multiplies in f32 or bf16. Half precision has more fraction bits than bf16: f32 keeps them all.
_AUTO_DTYPES = {"float32": "float32", "bfloat16": "bfloat16", "float16": "float32"}


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What the forward pass must know, in Hugging Face's names; the twin of the native ModelConfig."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    hidden_act: str  # "silu", "gelu", "gelu_pytorch_tanh"
    tie_word_embeddings: bool
    attention_bias: bool  # on q, k, v
    attention_output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    max_position_embeddings: int
    rope: Rope
    dtype: str  # that the checkpoint asks for: "float32", "bfloat16"

    def native_fields(self, dtype: str = "auto", *, max_position_embeddings: int | None = None) -> dict[str, Any]:
        """Keyword arguments of the native ModelConfig. `dtype` "auto" is the checkpoint's."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "rope"}
        fields |= self.rope.native_fields()
        fields["dtype"] = self.resolve_dtype(dtype)
        if max_position_embeddings is not None:
            fields["max_position_embeddings"] = max_position_embeddings
        return fields

    def resolve_dtype(self, dtype: str) -> str:
        """The type that weights are multiplied in: `dtype`, or the checkpoint's for "auto"."""
        return self.dtype if dtype == "auto" else dtype


@dataclass(frozen=True)
class GenerationDefaults:
    """generation_config.json: when an answer ends, and how tokens are chosen unless a request says otherwise."""

    eos_token_ids: tuple[int, ...] = ()
    sampling: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))  # SamplingParams' names


def read_model_config(directory: str | Path) -> ModelConfig:
    """The model's configuration from `directory`/config.json.

    Raises:
        ModelLoadError: the file is missing, or a field is missing or of the wrong type.
        UnsupportedModelError: an architecture or option that the engine doesn't compute.
    """
    path = Path(directory) / "config.json"
    return _Reader(path, read_json(path)).model_config()


def read_generation_defaults(directory: str | Path) -> GenerationDefaults:
    """End-of-sequence ids and default sampling values.

    An id ends an answer if generation_config.json, config.json or the tokenizer says so: a chat fine-tune may name its
    end of turn in any one of them and keep the base model's id in the others.

    Raises:
        ModelLoadError: a file is unreadable, an id is not an integer, or a sampling value is out of range.
    """
    path = Path(directory) / "generation_config.json"
    generation = read_json_if_present(path)
    ids = _eos_token_ids(path, generation)
    config = Path(directory) / "config.json"
    ids += _eos_token_ids(config, read_json_if_present(config))
    if (of_tokenizer := eos_token_id(directory)) is not None:
        ids.append(of_tokenizer)
    sampling = _sampling_defaults(generation)
    try:
        SamplingParams(**sampling)
    except InvalidRequestError as error:  # said at the start, not to everybody who asks
        raise ModelLoadError(f"{path}: {error.message}") from error
    return GenerationDefaults(tuple(dict.fromkeys(ids)), MappingProxyType(sampling))


def _eos_token_ids(path: Path, tree: Mapping[str, Any]) -> list[int]:
    eos = tree.get("eos_token_id")
    ids = [] if eos is None else eos if isinstance(eos, list) else [eos]
    for token in ids:
        if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < 2**31:
            raise ModelLoadError(f"{path}: eos_token_id must hold token ids, found {token!r}")
    return list(ids)


def _sampling_defaults(generation: Mapping[str, Any]) -> dict[str, Any]:
    """`do_sample: false` is greedy, whatever stands beside it; a penalty changes that too."""
    for name, neutral in _NOT_APPLIED.items():
        if (value := generation.get(name)) is not None and value not in neutral:
            _log.warning("generation_config.json: %s %s is not applied", name, shortened(value))
    names = [name for name, field in FIELDS.items() if field.from_model]
    given = {name: generation[name] for name in names if generation.get(name) is not None}
    if generation.get("do_sample") is not False:
        return given
    return {"temperature": 0.0} | {name: value for name, value in given.items() if name == "repetition_penalty"}


class _Reader:
    """One config.json: typed access to its fields, errors that name file, field and value."""

    def __init__(self, path: Path, tree: Mapping[str, Any]) -> None:
        self._path = path
        self._tree = tree

    def model_config(self) -> ModelConfig:
        name = self._architecture()
        architecture = ARCHITECTURES[name]
        self._refuse_what_is_not_computed()
        hidden_size, heads = self._count("hidden_size"), self._count("num_attention_heads")
        max_positions = self._count("max_position_embeddings", architecture.max_position_embeddings)
        attention_bias = self._flag("attention_bias")
        return ModelConfig(
            architecture=name,
            vocab_size=self._count("vocab_size"),
            hidden_size=hidden_size,
            intermediate_size=self._count("intermediate_size"),
            num_hidden_layers=self._count("num_hidden_layers"),
            num_attention_heads=heads,
            num_key_value_heads=self._count("num_key_value_heads", heads),
            head_dim=self._count("head_dim", architecture.head_dim or hidden_size // heads),
            rms_norm_eps=self._number("rms_norm_eps", 1e-6),
            hidden_act=self._activation(),
            tie_word_embeddings=self._flag("tie_word_embeddings"),
            attention_bias=attention_bias,
            attention_output_bias=attention_bias,
            mlp_bias=architecture.has_mlp_bias and self._flag("mlp_bias"),
            qk_norm=architecture.qk_norm,
            max_position_embeddings=max_positions,
            rope=read_rope(self._path, self._tree, max_positions),
            dtype=self._dtype(),
        )

    def _architecture(self) -> str:
        names = self._texts("architectures")
        if len(names) == 1 and names[0] in ARCHITECTURES:
            return names[0]
        found = ", ".join(names) if names else "none"
        raise UnsupportedModelError(
            f"{self._path}: architecture {found} is not supported, there are {', '.join(ARCHITECTURES)}"
        )

    def _refuse_what_is_not_computed(self) -> None:
        for name in ("quantization_config", "compression_config"):
            if self._tree.get(name):
                self._unsupported(name, "quantized weights are not supported")
        if self._tree.get("use_sliding_window"):
            self._unsupported("use_sliding_window", "sliding-window attention is not supported")
        if any(kind != "full_attention" for kind in self._texts("layer_types")):
            self._unsupported("layer_types", "only full_attention is supported")
        for name in ("attn_logit_softcapping", "final_logit_softcapping"):
            if self._tree.get(name) is not None:
                self._unsupported(name, "logit soft-capping is not supported")

    def _activation(self) -> str:
        name = self._tree.get("hidden_act", "silu")
        if not isinstance(name, str) or name not in ACTIVATIONS:
            self._unsupported("hidden_act", f"there are {', '.join(ACTIVATIONS)}")
        return ACTIVATIONS[name]

    def _dtype(self) -> str:
        name = self._tree.get("dtype") or self._tree.get("torch_dtype") or "float32"
        if not isinstance(name, str) or name not in _AUTO_DTYPES:
            raise UnsupportedModelError(
                f"{self._path}: dtype {name!r} is not supported, there are {', '.join(_AUTO_DTYPES)}"
            )
        return _AUTO_DTYPES[name]

    def _count(self, name: str, default: int | None = None) -> int:
        value = self._tree.get(name)
        value = default if value is None else value
        if value is None:
            raise ModelLoadError(f"{self._path}: {name} is missing")
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= MAX_COUNT:
            raise ModelLoadError(f"{self._path}: {name} must be a positive integer, found {shortened(value)}")
        return value

    def _number(self, name: str, default: float) -> float:
        value = self._tree.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= sys.float_info.max:
            raise ModelLoadError(f"{self._path}: {name} must be a positive number, found {shortened(value)}")
        return float(value)

    def _texts(self, name: str) -> list[str]:
        value = self._tree.get(name) or []
        if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
            raise ModelLoadError(f"{self._path}: {name} must be a list of texts, found {value!r}")
        return value

    def _flag(self, name: str) -> bool:
        value = self._tree.get(name, False)
        if not isinstance(value, bool):
            raise ModelLoadError(f"{self._path}: {name} must be true or false, found {value!r}")
        return value

    def _unsupported(self, name: str, reason: str) -> None:
        raise UnsupportedModelError(f"{self._path}: {name} is {self._tree.get(name)!r}: {reason}")
