"""What handovers took, by pair and by worker."""

import pytest

from rtp_llm.router.placement.link import BELIEVED_S, MAX_LINKS, Link, Links

UNKNOWN = 2.0**-20


def test_the_first_handover_of_a_link_which_may_have_had_to_connect_is_not_believed_at_once() -> None:
    link = Link()
    link.observe(100 * UNKNOWN, 0.0, UNKNOWN)
    assert UNKNOWN < link.token_s < 50 * UNKNOWN
    for _ in range(20):
        link.observe(100 * UNKNOWN, 0.0, UNKNOWN)
    assert link.token_s == pytest.approx(100 * UNKNOWN, rel=0.42)


def test_rates_that_scatter_count_alike() -> None:
    fast, slow = Link(), Link()
    fast.observe(UNKNOWN, 0.0, UNKNOWN)
    slow.observe(1.9 * UNKNOWN, 0.0, UNKNOWN)
    assert fast.token_s == slow.token_s == UNKNOWN


def test_handovers_that_take_no_time_cost_none() -> None:
    link = Link()
    link.observe(0.0, 0.0, 0.0)
    assert link.token_s == 0.0


def test_a_link_that_was_not_used_for_long_is_as_good_as_unknown() -> None:
    links = Links()
    links.received("p", 1.0, 0.0, UNKNOWN)
    assert links.token_s("p", Links(), BELIEVED_S - 1, UNKNOWN) > 0.1
    assert links.token_s("p", Links(), BELIEVED_S + 1, UNKNOWN) == UNKNOWN


def test_a_pair_that_is_not_known_takes_the_mean_of_what_both_take_with_others() -> None:
    sender, receiver = Links(), Links()
    receiver.received("other", 1.0, 0.0, UNKNOWN)
    slow = receiver.token_s("other", Links(), 0.0, UNKNOWN)
    assert receiver.token_s("p", sender, 0.0, UNKNOWN) == (slow + UNKNOWN) / 2
    sender.sent(1.0, 0.0, UNKNOWN)
    assert receiver.token_s("p", sender, 0.0, UNKNOWN) == slow


def test_no_sender_takes_less_than_the_least() -> None:
    sender, receiver = Links(), Links()
    for name, token_s in (("fast", UNKNOWN / 8), ("slow", 1.0)):
        receiver.received(name, token_s, 0.0, UNKNOWN)
    least = receiver.least_token_s(sender.sent_token_s(0.0, UNKNOWN), 0.0, UNKNOWN)
    assert least <= min(receiver.token_s(name, sender, 0.0, UNKNOWN) for name in ("fast", "slow", "unknown"))
    assert least > 0


def test_of_a_receiver_the_links_used_last_are_kept() -> None:
    links = Links()
    for n in range(MAX_LINKS + 1):
        links.received(f"p{n}", 1.0, 0.0, UNKNOWN)
        links.received("p0", 1.0, 0.0, UNKNOWN)
    assert len(links._from) == MAX_LINKS and "p0" in links._from and "p1" not in links._from
