import random
from collections.abc import Callable
from pathlib import Path

import pytest

from rtp_llm.config import DEMO_MODEL
from rtp_llm.errors import InvalidRequestError, ModelLoadError
from rtp_llm.model import tokenizer as tokenizer_module
from rtp_llm.model.tokenizer import Tokenizer
from tests.model.tokenizer_files import SENTENCES, byte_level, sentencepiece


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(byte_level(tmp_path_factory.mktemp("byte_level")))


def test_text_survives_encoding(tokenizer: Tokenizer) -> None:
    for text in SENTENCES:
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_special_tokens_are_added_once(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("fox")[0] == 0
    rendered = "<s><|im_start|>fox"
    ids = tokenizer.encode(rendered, add_special_tokens=False)
    assert ids[:2] == [0, 2]
    assert ids.count(0) == 1


def test_special_tokens_are_known_by_name_and_id(tokenizer: Tokenizer) -> None:
    assert tokenizer.special_tokens == {"bos_token": "<s>", "eos_token": "</s>"}
    added = tokenizer.token_text(tokenizer.encode("added word")[1])
    assert tokenizer.special_ids_of([tokenizer.token_text(2), added]) == (2,)


def test_special_tokens_are_skipped_or_kept_as_asked(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("fox")
    assert tokenizer.decode(ids) == "fox"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "<s>fox"


def test_vocab_size_is_beyond_the_highest_id(tokenizer: Tokenizer) -> None:
    added = tokenizer.encode("added word", add_special_tokens=False)
    assert added == [tokenizer.vocab_size - 1]
    assert tokenizer.token_bytes(tokenizer.vocab_size) == b""


def test_token_text_shows_half_a_character_by_its_bytes(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("\U0001f980", add_special_tokens=False)
    names = [tokenizer.token_text(token) for token in ids]
    assert names[0].startswith("bytes:\\xf0") and len(set(names)) == len(set(ids)) > 1
    assert b"".join(tokenizer.token_bytes(token) for token in ids) == "\U0001f980".encode()
    assert tokenizer.token_text(tokenizer.encode("added word", add_special_tokens=False)[0]) == "added word"
    assert tokenizer.token_text(2) == "<|im_start|>"


def test_token_text_of_a_sentencepiece_vocabulary(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(sentencepiece(tmp_path))
    assert tokenizer.token_text(1) == "<s>"
    ids = [259, 262, 264, *[3 + byte for byte in "\U0001f980".encode()]]
    assert [tokenizer.token_text(token) for token in ids] == [
        " The", " fox", "fox", "bytes:\\xf0", "bytes:\\x9f", "bytes:\\xa6", "bytes:\\x80",
    ]  # fmt: skip
    assert b"".join(tokenizer.token_bytes(token) for token in ids).decode() == " The foxfox\U0001f980"


@pytest.mark.parametrize("make", [byte_level, sentencepiece])
def test_no_two_tokens_read_alike(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    tokenizer = Tokenizer.load(make(tmp_path))
    names = [tokenizer.token_text(token) for token in range(tokenizer.vocab_size)]
    twice = {name for name in names if names.count(name) > 1}
    assert all(name.isascii() and len(name) == 1 for name in twice)  # a letter and its byte


def test_truncation_and_padding_of_the_file_are_off(tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Backend

    byte_level(tmp_path)
    backend = Backend.from_file(str(tmp_path / "tokenizer.json"))
    backend.enable_truncation(4)
    backend.enable_padding(length=64)
    backend.save(str(tmp_path / "tokenizer.json"))
    assert Tokenizer.load(tmp_path).decode(Tokenizer.load(tmp_path).encode(SENTENCES[0])) == SENTENCES[0]


def test_text_that_is_not_unicode_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(InvalidRequestError, match="not valid Unicode: surrogates not allowed at character 1"):
        tokenizer.encode("a\ud800")


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelLoadError, match=r"tokenizer\.json"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ModelLoadError, match=r"no tokenizer\.json"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("piece", [25, 60])
def test_a_text_that_surely_has_more_tokens_has_them(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_module, "PIECE_CHARS", piece)
    monkeypatch.setattr(tokenizer_module, "CHARS_PER_TOKEN", 1)
    tokenizer = Tokenizer.load(DEMO_MODEL)
    draw = random.Random(2)
    words = ["hello", " world", "  ", "What is", " 23", "\n\n", "é", "日本", "#" * 40, "a"]
    sure = 0
    for _ in range(200):
        text = "".join(draw.choices(words, k=draw.randrange(1, 120)))
        tokens = len(tokenizer.encode(text, add_special_tokens=False))
        for limit in (tokens - 1, tokens, tokens // 2, 5):
            if tokenizer.has_more_tokens(text, limit):
                assert tokens > limit
                sure += 1
    assert sure > 0
    assert not tokenizer.has_more_tokens("", 0)
    with pytest.raises(InvalidRequestError, match="at character 90"):
        tokenizer.has_more_tokens("a" * 90 + "\ud800", 5)
