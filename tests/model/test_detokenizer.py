import random
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from rtp_llm.model.detokenizer import ByteLevelDetokenizer, WindowDetokenizer
from rtp_llm.model.tokenizer import Tokenizer
from tests.model.tokenizer_files import SENTENCES, byte_level, sentencepiece


@pytest.fixture(scope="module")
def bytes_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(byte_level(tmp_path_factory.mktemp("byte_level")))


@pytest.fixture(scope="module")
def pieces_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(sentencepiece(tmp_path_factory.mktemp("pieces")))


def stream(tokenizer: Tokenizer, ids: Sequence[int], prompt: Sequence[int] = ()) -> list[str]:
    detokenizer = tokenizer.detokenizer(prompt=prompt)
    return [*(detokenizer.push([token]) for token in ids), detokenizer.finish()]


def bytes_of(text: str) -> list[int]:
    """Byte tokens of the sentencepiece vocabulary."""
    return [3 + byte for byte in text.encode()]


# --- Byte-level vocabularies


def test_byte_level_text_is_that_of_decoding_all_at_once(bytes_tokenizer: Tokenizer) -> None:
    assert isinstance(bytes_tokenizer.detokenizer(), ByteLevelDetokenizer)
    for text in SENTENCES:
        pieces = stream(bytes_tokenizer, bytes_tokenizer.encode(text))
        assert "".join(pieces) == text
        assert all("\ufffd" not in piece for piece in pieces)


def test_any_ids_at_all_give_the_text_of_decoding_all_at_once(bytes_tokenizer: Tokenizer) -> None:
    rng = random.Random(1)
    for _ in range(200):
        ids = [rng.randrange(bytes_tokenizer.vocab_size) for _ in range(30)]
        assert "".join(stream(bytes_tokenizer, ids)) == bytes_tokenizer.decode(ids)


def test_half_a_character_waits_for_its_other_half(bytes_tokenizer: Tokenizer) -> None:
    ids = bytes_tokenizer.encode("\U0001f980", add_special_tokens=False)
    assert len(ids) > 2
    assert stream(bytes_tokenizer, ids) == [*[""] * (len(ids) - 1), "\U0001f980", ""]


def test_half_a_character_at_the_end_reads_as_replacement(bytes_tokenizer: Tokenizer) -> None:
    ids = bytes_tokenizer.encode("x\U0001f980", add_special_tokens=False)[:-1]
    pieces = stream(bytes_tokenizer, ids)
    assert "".join(pieces) == "x\ufffd"
    assert pieces[-1] == "\ufffd"


def test_special_tokens_are_kept_on_request(bytes_tokenizer: Tokenizer) -> None:
    detokenizer = bytes_tokenizer.detokenizer(skip_special_tokens=False)
    assert detokenizer.push([2, *bytes_tokenizer.encode("fox", add_special_tokens=False)]) == "<|im_start|>fox"
    assert bytes_tokenizer.detokenizer().push([2]) == ""


def test_tokens_at_once_or_one_by_one_are_the_same(bytes_tokenizer: Tokenizer) -> None:
    ids = bytes_tokenizer.encode(SENTENCES[1])
    assert bytes_tokenizer.detokenizer().push(ids) == SENTENCES[1]


# --- Other vocabularies


def test_words_keep_their_spaces(pieces_tokenizer: Tokenizer) -> None:
    assert isinstance(pieces_tokenizer.detokenizer(), WindowDetokenizer)
    the, quick, fox = 259, 260, 264
    assert stream(pieces_tokenizer, [the, quick, fox]) == ["The", " quick", "fox", ""]
    assert stream(pieces_tokenizer, [quick, quick], prompt=[the]) == [" quick", " quick", ""]


def test_bytes_wait_for_their_character(pieces_tokenizer: Tokenizer) -> None:
    ids = [259, *bytes_of("é🙂"), 264]
    pieces = stream(pieces_tokenizer, ids)
    assert "".join(pieces) == "Theé🙂fox"
    assert all("\ufffd" not in piece for piece in pieces)


def test_bytes_that_never_become_a_character_come_out_in_the_end(pieces_tokenizer: Tokenizer) -> None:
    pieces = stream(pieces_tokenizer, [259, 3 + 0xFF])
    assert pieces == ["The", "", "\ufffd"]
    many = stream(pieces_tokenizer, [3 + 0xFF] * 40)
    assert "".join(many) == "\ufffd" * 40
    assert many[20:].count("") < 20


def test_skipped_tokens_leave_no_trace(pieces_tokenizer: Tokenizer) -> None:
    assert stream(pieces_tokenizer, [259, 2, 2, 260]) == ["The", "", "", " quick", ""]


@pytest.mark.parametrize("kind", ["bytes", "pieces"])
def test_a_token_costs_the_same_however_long_the_answer_is(
    kind: str, bytes_tokenizer: Tokenizer, pieces_tokenizer: Tokenizer
) -> None:
    tokenizer = bytes_tokenizer if kind == "bytes" else pieces_tokenizer
    ids = tokenizer.encode("The quick brown fox", add_special_tokens=False) * 500

    def seconds(part: Sequence[int]) -> float:
        begin = time.perf_counter()
        for token in part:
            detokenizer.push([token])
        return time.perf_counter() - begin

    detokenizer = tokenizer.detokenizer()
    first = min(seconds(ids[:200]) for _ in range(3))
    for token in ids:
        detokenizer.push([token])
    last = min(seconds(ids[:200]) for _ in range(3))
    print(f"{kind}: {first / 200 * 1e6:.1f} us a token at the start, {last / 200 * 1e6:.1f} after {len(ids)}")
    assert last < 10 * first


def test_the_demo_models_vocabulary_is_byte_level() -> None:
    demo = Path(__file__).resolve().parents[2] / "rtp_llm" / "demo"
    tokenizer = Tokenizer.load(demo)
    assert isinstance(tokenizer.detokenizer(), ByteLevelDetokenizer)
    assert "".join(stream(tokenizer, tokenizer.encode("Grüße, 你好 🙂"))) == "Grüße, 你好 🙂"
