"""The router's table of docs/protocol.md, a test per row; what a guard forbids stands beside it."""

from __future__ import annotations

import pytest

from rtp_llm.errors import EngineError, InvalidRequestError, SuspectError, WorkerLostError
from rtp_llm.request import FinishReason, TokenOutput
from rtp_llm.router.request_machine import (
    Action,
    AttachEntry,
    AttachRole,
    Busy,
    Cancel,
    Committed,
    Emit,
    Ended,
    Event,
    Fail,
    Failed,
    Fence,
    Fenced,
    Finish,
    Lost,
    Output,
    Place,
    Planned,
    Released,
    RequestMachine,
    Resumed,
    Started,
    State,
    Submit,
)
from rtp_llm.wire.key import RequestKey, WorkerKey

S = WorkerKey("s", 1)
R = WorkerKey("r", 2)
W = WorkerKey("w", 3)
FIRST = RequestKey(77, 5, 0, 0)
SECOND = FIRST._replace(attempt=1)


class Bench:
    """A machine and what its last event made it do."""

    def __init__(self, *, tokens: list[int] | None = None) -> None:
        self.machine = RequestMachine(FIRST, tokens=tokens or [])
        self.did: list[Action] = self.machine.start()

    def tell(self, event: Event) -> list[Action]:
        self.did = self.machine.handle(event)
        return self.did

    def output(self, worker: WorkerKey, position: int, *, finish: int = 0, key: RequestKey | None = None) -> list[int]:
        """Tells of one and returns the positions that are emitted."""
        output = TokenOutput(position, 100 + position, finish_reason=FinishReason(finish))
        self.tell(Output(key or self.machine.key, worker, output))
        return [action.output.position for action in self.did if isinstance(action, Emit)]

    @property
    def state(self) -> State:
        return self.machine.state


def running() -> Bench:
    bench = Bench()
    bench.tell(Planned(S, R))
    return bench


def alone() -> Bench:
    bench = Bench()
    bench.tell(Planned(W))
    return bench


def streaming() -> Bench:
    bench = running()
    bench.output(S, 0)
    bench.tell(Committed(FIRST, R))
    return bench


def judging() -> Bench:
    bench = running()
    bench.tell(Released(FIRST, S))
    return bench


# --- WAIT


def test_a_new_answer_waits_for_a_plan() -> None:
    bench = Bench()
    assert bench.did == [Place("first")]
    assert bench.state is State.WAIT


def test_a_plan_is_submitted_with_the_tokens_so_far() -> None:
    bench = Bench(tokens=[1, 2])
    assert bench.tell(Planned(S, R)) == [Submit(S, FIRST, (1, 2), R)]
    assert bench.state is State.RUN


def test_a_deadline_while_waiting_fails() -> None:
    bench = Bench()
    error = InvalidRequestError("too late")
    assert bench.tell(Ended(error)) == [Fail(error)]
    assert bench.state is State.DONE


# --- RUN


def test_busy_tries_the_next_attempt_and_is_no_loss() -> None:
    bench = running()
    assert bench.tell(Busy(FIRST, S)) == [Place("busy")]
    assert bench.machine.key == SECOND
    assert bench.state is State.WAIT
    assert bench.machine.losses == 0


def test_the_first_token_of_the_sender_is_emitted_at_once() -> None:
    bench = running()
    assert bench.output(S, 0) == [0]
    assert bench.state is State.RUN


def test_a_position_at_which_no_token_could_be_sampled_fails_the_answer_in_its_turn_and_is_not_retried() -> None:
    for bench, worker in ((running(), S), (streaming(), R), (alone(), W)):
        position = len(bench.machine.tokens)
        failed = TokenOutput(position + 1, -1, finish_reason=FinishReason.FAILED)
        assert bench.tell(Output(FIRST, worker, failed)) == []  # held
        assert bench.output(worker, position) == [position]
        *_, fail = bench.did
        assert isinstance(fail, Fail) and isinstance(fail.error, EngineError)
        assert str(position + 1) in fail.error.message
        assert [a for a in bench.did if isinstance(a, Cancel)] == [Cancel(w, FIRST) for w in bench.machine.workers()]
        assert bench.state is State.DONE


def test_the_first_output_of_the_receiver_begins_the_stream_and_what_was_emitted_is_dropped() -> None:
    bench = running()
    bench.output(S, 0)
    assert bench.output(R, 0) == []
    assert bench.state is State.STREAM
    assert bench.output(R, 1) == [1]


def test_committed_begins_the_stream() -> None:
    bench = running()
    assert bench.tell(Committed(FIRST, R)) == []
    assert bench.state is State.STREAM


def test_released_or_fenced_by_the_sender_asks_the_receiver() -> None:
    assert judging().did == [Fence(R, FIRST)]
    fenced = running()
    assert fenced.tell(Fenced(FIRST, S)) == [Fence(R, FIRST)]
    assert fenced.state is State.JUDGE


def test_released_or_fenced_without_a_receiver_retries() -> None:
    fenced = alone()
    assert fenced.tell(Fenced(FIRST, W)) == [Cancel(W, FIRST), Place("lost")]
    assert fenced.state is State.WAIT


def test_a_lost_sender_leaves_the_judgement_to_the_receiver() -> None:
    bench = running()
    assert bench.tell(Lost(S)) == [Fence(R, FIRST)]
    assert bench.state is State.JUDGE


def test_a_lost_receiver_or_lone_worker_retries() -> None:
    bench = running()
    assert bench.tell(Lost(R)) == [Cancel(S, FIRST), Place("lost")]
    assert alone().tell(Lost(W)) == [Place("lost")]


def test_a_worker_that_has_nothing_to_do_with_it_may_be_lost() -> None:
    bench = running()
    assert bench.tell(Lost(W)) == []
    assert bench.state is State.RUN


def test_fenced_by_the_receiver_while_the_sender_works_is_left_to_the_sender() -> None:
    bench = running()
    assert bench.tell(Fenced(FIRST, R)) == []
    assert bench.state is State.RUN


# --- position order


def test_only_the_next_position_is_emitted_later_ones_are_held_earlier_ones_dropped() -> None:
    bench = streaming()
    assert bench.output(R, 3) == []
    assert bench.output(R, 2) == []
    assert bench.output(R, 0) == []
    assert bench.output(R, 1) == [1, 2, 3]
    assert bench.output(R, 2) == []
    assert bench.machine.tokens == [100, 101, 102, 103]


def test_it_is_done_when_the_finish_is_emitted_and_not_before() -> None:
    bench = streaming()
    assert bench.output(R, 2, finish=1) == []
    assert bench.state is State.STREAM
    assert bench.output(R, 1) == [1, 2]
    assert bench.did[-1] == Finish()
    assert bench.state is State.DONE


def test_a_first_token_that_finishes_is_the_answer() -> None:
    bench = running()
    assert bench.output(S, 0, finish=1) == [0]
    assert bench.state is State.DONE


def test_a_retry_drops_what_was_held() -> None:
    bench = streaming()
    bench.output(R, 5)
    bench.tell(Lost(R))
    bench.tell(Planned(S, W))
    assert bench.output(S, 1) == [1]
    for position in range(2, 5):
        assert bench.output(W, position) == [position]
    assert bench.output(W, 6) == []


# --- Failed


@pytest.mark.parametrize(("make", "worker"), [(running, S), (streaming, S), (streaming, R), (judging, R), (alone, W)])
def test_failed_ends_with_its_error_whatever_the_state(make, worker) -> None:  # type: ignore[no-untyped-def]
    bench = make()
    error = InvalidRequestError("token 9 out of range")
    did = bench.tell(Failed(FIRST, worker, error))
    assert did[-1] == Fail(error)
    assert all(isinstance(action, Cancel) for action in did[:-1])
    assert bench.state is State.DONE


def test_who_is_not_counted_on_has_no_say() -> None:
    """Never named, or lost while R streams."""
    error = EngineError("broken")
    for make, worker in ((running, W), (alone, S)):
        bench = make()
        assert bench.tell(Failed(FIRST, worker, error)) == [] == bench.tell(Busy(FIRST, worker))
        assert bench.state is State.RUN
    bench = streaming()
    bench.tell(Lost(S))
    assert bench.tell(Failed(FIRST, S, error)) == []
    assert bench.state is State.STREAM and bench.output(R, 1) == [1]


# --- STREAM


def test_in_the_stream_the_sender_may_say_and_suffer_what_it_will() -> None:
    bench = streaming()
    assert bench.tell(Released(FIRST, S)) == []
    assert bench.tell(Fenced(FIRST, S)) == []
    assert bench.tell(Lost(S)) == []
    assert bench.state is State.STREAM


def test_a_receiver_lost_in_the_stream_retries_with_the_tokens_so_far_and_prefers_the_sender() -> None:
    bench = streaming()
    bench.output(R, 1)
    assert bench.tell(Lost(R)) == [Cancel(S, FIRST), Place("lost")]
    assert bench.machine.prefer == (S,)
    assert bench.tell(Planned(S, W)) == [Submit(S, SECOND, (100, 101), W)]


def test_a_receiver_that_fences_in_the_stream_is_a_loss() -> None:
    bench = streaming()
    assert bench.tell(Fenced(FIRST, R)) == [Cancel(S, FIRST), Cancel(R, FIRST), Place("lost")]
    assert bench.machine.losses == 1


# --- JUDGE


def test_committed_or_an_output_of_the_receiver_ends_the_judgement_in_the_stream() -> None:
    committed = judging()
    assert committed.tell(Committed(FIRST, R)) == []
    assert committed.state is State.STREAM
    spoke = judging()
    assert spoke.output(R, 0) == [0]
    assert spoke.state is State.STREAM


def test_an_output_of_the_sender_ends_no_judgement() -> None:
    bench = judging()
    assert bench.output(S, 0) == [0]
    assert bench.state is State.JUDGE


def test_fenced_ends_the_judgement_in_a_retry() -> None:
    bench = judging()
    assert bench.tell(Fenced(FIRST, R)) == [Cancel(S, FIRST), Cancel(R, FIRST), Place("fenced")]
    assert bench.machine.losses == 0


def test_only_the_receiver_judges() -> None:
    bench = judging()
    assert bench.tell(Fenced(FIRST, S)) == []
    assert bench.tell(Committed(FIRST, S)) == []
    assert bench.tell(Lost(S)) == []
    assert bench.state is State.JUDGE


def test_a_receiver_lost_in_the_judgement_is_a_loss() -> None:
    bench = judging()
    assert bench.tell(Lost(R)) == [Cancel(S, FIRST), Place("lost")]
    assert bench.machine.losses == 1


def test_fenced_in_a_judgement_that_a_loss_began_is_a_loss() -> None:
    bench = running()
    bench.tell(Lost(S))
    bench.tell(Fenced(FIRST, R))
    assert bench.machine.losses == 1


def test_the_fence_is_repeated_after_each_reconnect() -> None:
    bench = judging()
    assert bench.tell(Resumed(R)) == [Fence(R, FIRST)]
    assert bench.tell(Resumed(R)) == [Fence(R, FIRST)]
    assert bench.tell(Resumed(S)) == []
    assert running().tell(Resumed(R)) == []


# --- RETRY


def test_the_third_loss_fails() -> None:
    bench = alone()
    for _ in range(2):
        bench.tell(Lost(W))
        assert bench.state is State.WAIT
        bench.tell(Planned(W))
    bench.tell(Lost(W))
    assert bench.state is State.DONE
    last = bench.did[-1]
    assert isinstance(last, Fail)
    assert isinstance(last.error, WorkerLostError)


def test_released_and_busy_are_no_losses_however_many() -> None:
    bench = running()
    for _ in range(5):
        bench.tell(Released(bench.machine.key, S))
        bench.tell(Fenced(bench.machine.key, R))
        bench.tell(Planned(S, R))
        bench.tell(Busy(bench.machine.key, S))
        bench.tell(Planned(S, R))
    assert bench.machine.losses == 0
    assert bench.state is State.RUN


def test_after_two_released_it_runs_alone() -> None:
    bench = running()
    assert not bench.machine.must_run_alone
    for _ in range(2):
        bench.tell(Released(bench.machine.key, S))
        bench.tell(Fenced(bench.machine.key, R))
        bench.tell(Planned(S, R))
    assert bench.machine.must_run_alone


def test_a_lost_worker_is_no_longer_preferred() -> None:
    bench = judging()
    bench.tell(Fenced(FIRST, R))
    assert bench.machine.prefer == (S,)
    bench.tell(Lost(S))
    assert bench.machine.prefer == ()


# --- any


@pytest.mark.parametrize("make", [running, streaming, judging])
def test_a_client_that_leaves_cancels_at_both_workers(make) -> None:  # type: ignore[no-untyped-def]
    bench = make()
    assert bench.tell(Ended()) == [Cancel(S, FIRST), Cancel(R, FIRST), Finish()]
    assert bench.tell(Ended()) == []


def test_a_stale_key_that_speaks_is_cancelled_where_it_spoke_and_emits_nothing() -> None:
    bench = running()
    bench.tell(Lost(R))
    bench.tell(Planned(W))
    assert bench.output(R, 0, key=FIRST) == []
    assert bench.did == [Cancel(R, FIRST)]
    assert bench.tell(Committed(FIRST, R)) == [Cancel(R, FIRST)]
    assert bench.tell(Released(FIRST, S)) == [Cancel(S, FIRST)]
    assert bench.tell(Fenced(FIRST, R)) == []
    assert bench.state is State.RUN


def test_after_the_end_everything_that_lives_is_stale() -> None:
    bench = streaming()
    bench.tell(Ended())
    assert bench.output(R, 1) == []
    assert bench.did == [Cancel(R, FIRST)]


# --- Attach


def test_an_attach_lists_each_role_with_the_next_position() -> None:
    bench = streaming()
    assert bench.machine.attach_entry(S) == AttachEntry(FIRST, 1, AttachRole.SENDER)
    assert bench.machine.attach_entry(R) == AttachEntry(FIRST, 1, AttachRole.RECEIVER)
    assert bench.machine.attach_entry(W) is None
    assert alone().machine.attach_entry(W) == AttachEntry(FIRST, 0, AttachRole.ALONE)


def test_an_attach_lists_neither_what_waits_nor_what_is_done_nor_who_was_lost() -> None:
    waiting = running()
    waiting.tell(Busy(FIRST, S))
    assert waiting.machine.attach_entry(S) is None
    done = running()
    done.tell(Ended())
    assert done.machine.attach_entry(S) is None
    lost = streaming()
    lost.tell(Lost(S))
    assert lost.machine.attach_entry(S) is None


# --- Suspects


def solo(started: bool = True) -> Bench:
    """Its second attempt, after a worker that had shown no token of it."""
    bench = alone()
    bench.tell(Lost(W))
    assert bench.machine.must_run_alone
    assert bench.tell(Planned(S)) == [Submit(S, SECOND, (), None, solo=True)]
    if started:
        bench.tell(Started(SECOND, S))
    return bench


def next_attempt(bench: Bench) -> Submit:
    [submit] = [action for action in bench.tell(Planned(S)) if isinstance(action, Submit)]
    return submit


@pytest.mark.parametrize(("shown", "suspect"), [(0, True), (1, True), (2, False)])
def test_who_was_lost_under_the_first_steps_makes_a_suspect(shown: int, suspect: bool) -> None:
    """Alone those of its prefill and of its first decode."""
    bench = alone()
    for position in range(shown):
        bench.output(W, position)
    bench.tell(Lost(W))
    assert next_attempt(bench).solo is suspect


def test_tokens_so_far_show_nothing_of_a_later_attempt() -> None:
    bench = Bench(tokens=[7, 7, 7])
    bench.tell(Planned(W))
    bench.output(W, 3)
    bench.tell(Lost(W))
    assert next_attempt(bench).solo


@pytest.mark.parametrize(("shown", "suspect"), [(False, True), (True, False)])
def test_a_lost_sender_makes_a_suspect_of_what_it_had_not_prefilled(shown: bool, suspect: bool) -> None:
    bench = running()
    if shown:
        bench.output(S, 0)
    bench.tell(Lost(S))
    bench.tell(Fenced(FIRST, R))
    assert next_attempt(bench).solo is suspect


@pytest.mark.parametrize(("shown", "suspect"), [(1, True), (2, False)])
def test_a_lost_receiver_makes_a_suspect_of_what_it_had_not_decoded(shown: int, suspect: bool) -> None:
    bench = streaming()
    for position in range(shown):
        bench.output(R, position)
    bench.tell(Lost(R))
    assert next_attempt(bench).solo is suspect


def test_what_the_receiver_goes_on_with_is_no_suspect_for_its_lost_sender() -> None:
    bench = running()
    bench.tell(Lost(S))
    bench.output(R, 0)
    bench.output(R, 1)
    assert not bench.machine.is_suspect


def test_a_solo_attempt_that_began_and_lost_its_worker_is_to_blame() -> None:
    bench = solo()
    [failed] = bench.tell(Lost(S))
    assert isinstance(failed, Fail) and isinstance(failed.error, SuspectError)
    assert "2 workers were lost" in str(failed.error)
    assert bench.state is State.DONE


def test_a_solo_attempt_that_had_not_begun_is_tried_again_in_steps_of_its_own() -> None:
    bench = solo(started=False)
    assert bench.tell(Lost(S)) == [Place("lost")]
    assert next_attempt(bench).solo


def test_a_notice_of_another_attempt_or_worker_blames_nobody() -> None:
    bench = solo(started=False)
    assert bench.tell(Started(FIRST, S)) == []
    assert bench.tell(Started(SECOND, W)) == []
    assert bench.tell(Lost(S)) == [Place("lost")]


def test_what_began_in_an_earlier_solo_attempt_blames_nobody() -> None:
    bench = solo()
    bench.tell(Fenced(SECOND, S))  # given up by its engine: nobody was lost
    bench.tell(Planned(W))
    [failed] = bench.tell(Lost(W))
    assert isinstance(failed, Fail) and isinstance(failed.error, WorkerLostError)  # the third loss


def test_a_suspect_that_survives_its_first_steps_is_none_any_more() -> None:
    bench = solo()
    bench.output(S, 0)
    bench.output(S, 1)
    assert bench.tell(Lost(S)) == [Place("lost")]
    assert not next_attempt(bench).solo


def test_what_an_administrator_preempts_is_tried_again_and_is_no_loss() -> None:
    alone = Bench()
    for _ in range(alone.machine.max_losses + 1):
        alone.tell(Planned(W))
        key = alone.machine.key
        assert alone.tell(Fenced(key, W, preempted=True)) == [Cancel(W, key), Place("preempted")]
    streaming = running()
    streaming.output(R, 0)
    assert streaming.tell(Fenced(FIRST, R, preempted=True)) == [Cancel(S, FIRST), Cancel(R, FIRST), Place("preempted")]
    assert streaming.machine.losses == 0
    judged = running()
    assert judged.tell(Fenced(FIRST, S, preempted=True)) == [Fence(R, FIRST)]
    judged.tell(Fenced(FIRST, R, preempted=True))
    assert (judged.machine.losses, judged.machine.releases) == (0, 0)
