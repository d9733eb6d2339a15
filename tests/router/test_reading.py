"""What a body asks, by the files of the model alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from rtp_llm.config import DEMO_MODEL, load_config
from rtp_llm.errors import InvalidRequestError
from rtp_llm.router.reading import BodyReader
from rtp_llm.router.schemas import Body, ChatBody, CompletionBody

NUM_EMBEDDINGS = 2000


def reader_of(directory: Path, vocab_size: int | None = None) -> BodyReader:
    """Of the demo model, with so many embeddings by its config."""
    shutil.copytree(
        DEMO_MODEL,
        directory,
        ignore=shutil.ignore_patterns("draft", "moe", "embedding", "adapters", "*.safetensors"),
    )
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | ({"vocab_size": vocab_size} if vocab_size else {})))
    return BodyReader(load_config(overrides={"model.path": str(directory)}, environ={}))


def test_a_tokenizer_larger_than_its_model_is_warned_of_and_what_needs_more_is_refused_by_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = reader_of(tmp_path / "whole")
    assert caplog.records == []
    reader = reader_of(tmp_path / "cut", NUM_EMBEDDINGS)
    size = reader.tokenizer.vocab_size
    [said] = [record.getMessage() for record in caplog.records]
    assert f"the tokenizer has {size} tokens, the model embeddings of {NUM_EMBEDDINGS}" in said

    text = "hamster Amsterdam grandmother Wednesday"
    unknown = next(token for token in reader.tokenizer.encode(text) if token >= NUM_EMBEDDINGS)
    bodies: list[tuple[str, Body]] = [
        ("messages", ChatBody(messages=[{"role": "user", "content": text}])),
        ("prompt", CompletionBody(prompt=text)),
        ("prompt", CompletionBody(prompt=["hi", text])),
    ]
    for field, body in bodies:
        whole.asked(body)
        with pytest.raises(InvalidRequestError) as refused:
            reader.asked(body)
        assert (refused.value.param, refused.value.value, refused.value.http_status) == (field, unknown, 400)
        name = reader.tokenizer.token_text(unknown)
        assert refused.value.message == (
            f"{field}: {name!r} is token {unknown} of the tokenizer, the model has embeddings of {NUM_EMBEDDINGS}"
        )
    few = reader.asked(CompletionBody(prompt="hi"))
    assert max(few.prompts[0]) < NUM_EMBEDDINGS
