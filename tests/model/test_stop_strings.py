import random

import pytest

from rtp_llm.model.stop_strings import StopStrings


def run(stops: list[str], pieces: list[str], *, include: bool = False) -> tuple[list[str], str | None]:
    matcher = StopStrings(stops, include_in_output=include)
    out = [matcher.push(piece) for piece in pieces]
    return [*out, matcher.finish()], matcher.matched


def test_text_without_a_stop_string_goes_straight_out() -> None:
    assert run(["###"], ["Hello", " world"]) == (["Hello", " world", ""], None)
    assert run([], ["a#", "b"]) == (["a#", "b", ""], None)


def test_a_possible_prefix_is_withheld_until_it_is_settled() -> None:
    assert run(["###"], ["a#", "#b", "#"]) == (["a", "##b", "", "#"], None)


def test_a_match_ends_the_text_before_it() -> None:
    assert run(["###"], ["a#", "##b", "more"]) == (["a", "", "", ""], "###")


def test_a_match_is_included_on_request_but_nothing_after_it() -> None:
    assert run(["###"], ["a#", "##b", "more"], include=True) == (["a", "###", "", ""], "###")


def test_a_stop_string_within_one_piece_is_found() -> None:
    assert run(["b", "c"], ["abc"]) == (["a", ""], "b")


def test_the_string_that_ends_first_wins_then_the_longest() -> None:
    assert run(["abcd", "bc"], ["xabcd"]) == (["xa", ""], "bc")
    assert run(["bc", "abc"], ["xabc"]) == (["x", ""], "abc")


def test_overlapping_starts_are_not_lost() -> None:
    assert run(["aab"], ["aa", "ab"])[1] == "aab"
    assert "".join(run(["aab"], ["a", "a", "a", "b"])[0]) == "a"


@pytest.mark.parametrize("include", [False, True])
def test_the_cut_of_the_text_does_not_matter(include: bool) -> None:
    rng = random.Random(7)
    for _ in range(500):
        text = "".join(rng.choice("ab\n") for _ in range(rng.randrange(30)))
        stops = ["".join(rng.choice("ab\n") for _ in range(rng.randrange(1, 6))) for _ in range(rng.randrange(1, 4))]
        whole, matched = run(stops, [text], include=include)
        cuts = sorted(rng.randrange(len(text) + 1) for _ in range(rng.randrange(8)))
        pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        out, same = run(stops, pieces, include=include)
        assert ("".join(out), same) == ("".join(whole), matched)
        if matched is None:
            assert "".join(out) == text
        assert all(stop not in "".join(out) for stop in stops) or include


def test_a_stop_string_that_ends_while_none_may_counts_neither_then_nor_later() -> None:
    matcher = StopStrings(["ab", "xaby"])
    assert matcher.push("xab", may_end=False) == "" and matcher.matched is None
    assert matcher.push("z") == "xabz" and matcher.matched is None
    assert matcher.push("xab", may_end=False) == "" and matcher.push("yz") == "" and matcher.matched == "xaby"


def test_a_stop_string_may_begin_while_none_may_end() -> None:
    matcher = StopStrings(["ab"])
    assert matcher.push("ab a", may_end=False) == "ab "
    assert matcher.push("bc") == "" and matcher.matched == "ab"
