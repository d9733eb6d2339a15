import json
from pathlib import Path

import pytest

from rtp_llm.errors import ConfigError
from rtp_llm.load.workload import FIRST_TOKEN_ID, Lengths, Trace, random_prompts


def test_lengths_are_a_number_or_a_range() -> None:
    assert Lengths.of("128") == Lengths(128, 128)
    assert Lengths.of("64-512") == Lengths(64, 512)
    for text in ("0", "5-4", "-3", "x", "", "1-", "3-x"):
        with pytest.raises(ValueError, match=r"."):
            Lengths.of(text)


def test_random_prompts_are_what_was_asked_for_and_the_same_again() -> None:
    made = [list(random_prompts(500, 20.0, Lengths(5, 9), Lengths(2, 3), 50, seed)) for seed in (1, 1, 2)]
    assert made[0] == made[1] != made[2]
    assert {len(each.prompt) for each in made[0]} == {5, 6, 7, 8, 9}
    assert {each.output_tokens for each in made[0]} == {2, 3}
    assert {token for each in made[0] for token in each.prompt} == set(range(FIRST_TOKEN_ID, 50))
    assert made[0][0].due_s == 0.0
    assert 18 < 499 / made[0][-1].due_s < 22
    assert all(each.due_s == 0 for each in random_prompts(9, float("inf"), Lengths(1, 1), Lengths(1, 1), 50, 0))


def trace(tmp_path: Path, *rows: object) -> Path:
    file = tmp_path / "trace.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_equal_blocks_of_a_trace_are_equal_tokens(tmp_path: Path) -> None:
    rows = [
        {"timestamp": 0, "input_length": 1100, "output_length": 40, "hash_ids": [1, 2, 3]},
        {"timestamp": 2000, "input_length": 1200, "output_length": 5000, "hash_ids": [1, 2, 4]},
        {"timestamp": 3000, "input_length": 30, "output_length": 1, "hash_ids": [9]},
    ]
    first, second, third = Trace(trace(tmp_path, *rows), divide=4, longest=1000, speed=2.0).arrivals(3, 1000, 0)
    assert [each.due_s for each in (first, second, third)] == [0.0, 1.0, 1.5]
    assert [len(each.prompt) for each in (first, second, third)] == [275, 300, 7]
    assert [each.output_tokens for each in (first, second, third)] == [10, 1000, 1]
    assert first.prompt[:256] == second.prompt[:256] and first.prompt[256:] != second.prompt[256:275]
    [alone] = Trace(trace(tmp_path, *rows)).arrivals(1, 1000, 0)
    assert len(alone.prompt) == 1100


def test_a_trace_without_blocks_has_prompts_of_their_own(tmp_path: Path) -> None:
    row = {"timestamp": 0, "input_length": 20, "output_length": 4}
    first, second = Trace(trace(tmp_path, row, row)).arrivals(2, 1000, 0)
    assert len(first.prompt) == 20 and first.prompt != second.prompt


def test_what_is_wrong_with_a_trace_is_named(tmp_path: Path) -> None:
    good = {"timestamp": 0, "input_length": 20, "output_length": 4}
    with pytest.raises(ConfigError, match=r"trace\.jsonl, line 2: KeyError\('output_length'\)"):
        list(Trace(trace(tmp_path, good, {"timestamp": 0, "input_length": 20})).arrivals(9, 1000, 0))
    with pytest.raises(ConfigError, match="nowhere"):
        list(Trace(tmp_path / "nowhere").arrivals(9, 1000, 0))
