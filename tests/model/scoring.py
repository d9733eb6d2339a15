"""The engine's logprobs of given tokens, by its forward pass alone."""

import math
from pathlib import Path
from typing import Any

from rtp_llm._native import _engine
from rtp_llm.model.config import read_model_config
from rtp_llm.model.weights import untied_from_its_embedding
from tests.model.files import load_weights


class Scored:
    """A checkpoint, loaded; scores one sequence at a time."""

    def __init__(self, directory: Path, *, dtype: str = "float32", **scorer: Any) -> None:
        config = untied_from_its_embedding(directory, read_model_config(directory), "safetensors")
        self.vocab_size = config.vocab_size
        device = _engine.open_device("cpu")
        weights = _engine.Weights(device, _engine.ModelConfig(**config.native_fields(dtype)))
        load_weights(directory, config, weights)
        self._scorer = _engine.Scorer(device, _engine.Decoder(device, weights), kv_dtype=dtype, **scorer)
        self.digest = weights.digest

    def logits(self, tokens: list[int]) -> bytes:
        """[tokens, vocab] float32."""
        return bytes(self._scorer.logits(tokens))

    def logprobs(self, tokens: list[int]) -> list[list[float]]:
        """[tokens][vocab]: log-softmax of the logits after each token, in double precision."""
        values = memoryview(self.logits(tokens)).cast("f")
        return [_log_softmax(values[i : i + self.vocab_size].tolist()) for i in range(0, len(values), self.vocab_size)]


def _log_softmax(logits: list[float]) -> list[float]:
    top = max(logits)
    log_sum = top + math.log(sum(math.exp(logit - top) for logit in logits))
    return [logit - log_sum for logit in logits]
