"""Byte-level BPE over the generator's own text; the ordinary Hugging Face tokenizer files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from random import Random

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

import key_value
from chatml import CONTROL_TOKENS, END_OF_TEXT, END_OF_TURN, MARKUP_TOKENS, START_OF_TURN, TEMPLATE
from data import training_document

ADDED_TOKENS = [*CONTROL_TOKENS, *MARKUP_TOKENS]  # ids 0 … 8
VOCAB_SIZE = 2560
KEY_VALUE_SHARE = 20  # so many documents for one list of the words that must be single tokens
# Qwen's pattern: words with their leading space, every digit by itself, runs of marks, line ends.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _texts(seed: int, num_documents: int) -> Iterator[str]:
    rng = Random(f"tokenizer {seed}")
    for _ in range(num_documents):
        text = "".join(segment.text for segment in training_document(rng, rng.choice((200, 500, 1000, 2500))))
        for token in ADDED_TOKENS:
            text = text.replace(token, " \n")  # a border that no merge crosses
        yield text
    yield from ["".join(key_value.single_tokens())] * (num_documents // KEY_VALUE_SHARE)


def train(seed: int, num_documents: int = 10_000) -> Tokenizer:
    """The same arguments give the same tokenizer, byte for byte."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=ADDED_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(seed, num_documents), trainer)
    tokenizer = Tokenizer.from_str(_with_visible_markup(tokenizer.to_str()))
    _check_single_tokens(tokenizer)
    return tokenizer


def _with_visible_markup(tokenizer_json: str) -> str:
    """The markup tokens are no special tokens: they stay in decoded text, as with Qwen3."""
    content = json.loads(tokenizer_json)
    for token in content["added_tokens"]:
        token["special"] = token["content"] in CONTROL_TOKENS
    return json.dumps(content, ensure_ascii=False)


def _check_single_tokens(tokenizer: Tokenizer) -> None:
    """
    Raises:
        ValueError: a piece of the key–value tables is no single token; a line wouldn't fill its block.
    """
    broken = [piece for piece in key_value.single_tokens() if len(tokenizer.encode(piece).ids) != 1]
    if broken:
        raise ValueError(f"{len(broken)} pieces of the key–value tables are no single tokens: {broken}")


def save(tokenizer: Tokenizer, folder: Path, max_length: int) -> None:
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "added_tokens_decoder": {
            str(i): {
                "content": token, "lstrip": False, "normalized": False, "rstrip": False,
                "single_word": False, "special": token in CONTROL_TOKENS,
            }
            for i, token in enumerate(ADDED_TOKENS)
        },
        "additional_special_tokens": [START_OF_TURN, END_OF_TURN],
        "bos_token": None,
        "chat_template": TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": END_OF_TURN,
        "model_max_length": max_length,
        "pad_token": END_OF_TEXT,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": None,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
