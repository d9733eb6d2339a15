"""Special tokens of a model directory: what their names stand for, without loading the tokenizer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rtp_llm.model.files import read_json_if_present

SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def special_tokens(directory: str | Path) -> dict[str, str]:
    """Names of special tokens → their text ("bos_token": "<s>"), from tokenizer_config.json and special_tokens_map.json."""
    found = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        tree = read_json_if_present(Path(directory) / name)
        for token in SPECIAL_TOKENS:
            value = tree.get(token)
            if isinstance(value, dict):  # an AddedToken
                value = value.get("content")
            if isinstance(value, str):
                found[token] = value
    return found


def eos_token_id(directory: str | Path) -> int | None:
    """The id of the tokenizer's eos_token; None if it names none or the files don't say its id."""
    text = special_tokens(directory).get("eos_token")
    ids = (table.get(text) for table in _tables(Path(directory))) if text is not None else iter(())
    return next((id for id in ids if isinstance(id, int) and not isinstance(id, bool)), None)


def _tables(directory: Path) -> Iterator[Mapping[str, Any]]:
    """Text → id, the small files first."""
    added = read_json_if_present(directory / "tokenizer_config.json").get("added_tokens_decoder")
    if isinstance(added, dict):
        yield {_text(token): int(id) for id, token in added.items() if id.isdecimal()}
    yield read_json_if_present(directory / "added_tokens.json")
    tree = read_json_if_present(directory / "tokenizer.json")
    if isinstance(added := tree.get("added_tokens"), list):
        yield {_text(token): token.get("id") for token in added if isinstance(token, dict)}
    model = tree.get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocab, dict):
        yield vocab
    elif isinstance(vocab, list):  # Unigram: [text, score] by id
        yield {entry[0]: id for id, entry in enumerate(vocab) if isinstance(entry, list) and entry}


def _text(token: Any) -> str:
    return str(token.get("content")) if isinstance(token, dict) else str(token)
