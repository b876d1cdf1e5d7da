"""When a round closes, gets more time or fails, and which updates count."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import pytest

from agents.core.rounds.state import Candidate, Refusal, RoundState
from agents.words.events import RoundClosed, RoundExtended, RoundFailed, UpdateRejected
from agents.words.run_config import QuorumSpec
from bus.words.payload import Payload
from tests.builders import ANY_REF, RUN, START, Stream, assigned, planned, submitted


class Round:
    """A round under test with its stream."""

    def __init__(self, users: int, quorum: int, *, deadline_s: float = 60.0, **spec: float) -> None:
        self.stream = Stream()
        self.state = RoundState(RUN, 1, QuorumSpec.model_validate(spec))
        self.fold(planned(users, quorum, deadline_s=deadline_s))
        for index in range(users):
            self.fold(assigned(f"u{index}"))

    def fold(self, data: Payload, *, after_s: float = 0.0) -> Candidate | Refusal | None:
        return self.state.fold(self.stream.add(data, after_s=after_s))

    def decide(self, at_s: float) -> Payload | None:
        return self.state.decide(START + timedelta(seconds=at_s))


def test_a_round_without_a_plan_decides_nothing() -> None:
    assert RoundState(RUN, 1, QuorumSpec()).decide(START) is None


def test_one_update_short_of_the_quorum_keeps_the_round_open() -> None:
    one = Round(users=4, quorum=3)
    one.fold(submitted("u0"))
    one.fold(submitted("u1"))
    assert one.decide(59) is None


def test_the_quorum_closes_the_round_at_once_without_grace() -> None:
    one = Round(users=4, quorum=3)
    for user in ("u0", "u1", "u2"):
        one.fold(submitted(user))
    closed = one.decide(0)
    assert isinstance(closed, RoundClosed)
    assert (closed.reason, closed.accepted, closed.missing) == ("quorum", 3, 1)
    assert closed.through == one.stream.events[-1].sequence


@pytest.mark.parametrize(("at_s", "closes"), [(9.999, False), (10.0, True)])
def test_the_grace_after_the_quorum_is_exact(at_s: float, closes: bool) -> None:
    one = Round(users=3, quorum=2, grace_s=10)
    one.fold(submitted("u0"))
    one.fold(submitted("u1"))
    assert isinstance(one.decide(at_s), RoundClosed) is closes
    assert one.state.next_decision_at() == START + timedelta(seconds=10)


def test_all_updates_close_the_round_before_the_grace_is_over() -> None:
    one = Round(users=2, quorum=1, grace_s=100)
    one.fold(submitted("u0"))
    one.fold(submitted("u1"))
    closed = one.decide(1)
    assert isinstance(closed, RoundClosed)
    assert closed.reason == "all"


def test_the_deadline_closes_a_round_that_has_its_quorum_but_not_its_grace() -> None:
    one = Round(users=3, quorum=2, deadline_s=5, grace_s=100)
    one.fold(submitted("u0"))
    one.fold(submitted("u1"))
    assert one.decide(4.9) is None
    closed = one.decide(5)
    assert isinstance(closed, RoundClosed)
    assert closed.reason == "deadline"


def test_a_deadline_without_quorum_extends_as_often_as_allowed_and_then_fails() -> None:
    one = Round(users=3, quorum=2, deadline_s=10, extensions=2)
    for number in (1, 2):
        extended = one.decide(10 * number)
        assert isinstance(extended, RoundExtended)
        assert (extended.extension, extended.deadline) == (number, START + timedelta(seconds=10 * (number + 1)))
        one.fold(extended)
        assert one.decide(10 * number) is None
    failed = one.decide(30)
    assert isinstance(failed, RoundFailed)
    one.fold(failed)
    assert one.decide(1000) is None


def test_the_same_event_folded_twice_counts_once() -> None:
    one = Round(users=2, quorum=2)
    stored = one.stream.add(submitted("u0"))
    first, second = one.state.fold(stored), one.state.fold(stored)
    assert isinstance(first, Candidate)
    assert first == second
    assert len(one.state.accepted()) == 1


@pytest.mark.parametrize(
    ("update", "code"),
    [
        (submitted("u0"), "duplicate"),
        (submitted("stranger"), "unknown_task"),
        (submitted("u1", base=ANY_REF), "stale"),
    ],
)
def test_an_update_that_may_not_count_is_refused(update: Payload, code: str) -> None:
    one = Round(users=3, quorum=3)
    one.fold(submitted("u0", np.ones(4, np.float32)))
    refusal = one.fold(update)
    assert isinstance(refusal, Refusal)
    assert refusal.code == code
    assert list(one.state.accepted()) == ["u0"]
    assert one.state.unsaid() == [refusal]


def test_an_update_after_the_close_is_stale_and_stays_visible() -> None:
    one = Round(users=2, quorum=1)
    one.fold(submitted("u0"))
    closed = one.decide(0)
    assert closed is not None
    one.fold(closed)
    refusal = one.fold(submitted("u1"))
    assert isinstance(refusal, Refusal)
    assert refusal.code == "stale"
    assert list(one.state.accepted()) == ["u0"]


def test_an_update_between_the_decision_and_its_event_does_not_count() -> None:
    one = Round(users=3, quorum=1)
    one.fold(submitted("u0"))
    closed = one.decide(0)
    assert closed is not None
    assert isinstance(one.fold(submitted("u1")), Candidate)
    one.fold(closed)
    assert list(one.state.accepted()) == ["u0"]
    assert [refusal.code for refusal in one.state.unsaid()] == ["stale"]


def test_a_refusal_is_said_once() -> None:
    one = Round(users=2, quorum=2)
    refusal = one.fold(submitted("stranger"))
    assert isinstance(refusal, Refusal)
    one.fold(refusal.as_event())
    assert one.state.unsaid() == []


def test_an_update_with_bad_bytes_is_taken_out_and_its_user_does_not_hold_the_round_up() -> None:
    one = Round(users=2, quorum=1)
    candidate = one.fold(submitted("u0"))
    assert isinstance(candidate, Candidate)
    one.fold(Refusal(candidate.sequence, candidate.update, "nonfinite", "NaN").as_event())
    assert one.state.accepted() == {}
    assert one.decide(0) is None
    one.fold(submitted("u1"))
    closed = one.decide(0)
    assert isinstance(closed, RoundClosed)
    assert (closed.reason, closed.accepted, closed.rejected, closed.missing) == ("all", 1, 1, 0)


def test_a_rejection_that_names_another_attempt_changes_nothing() -> None:
    one = Round(users=1, quorum=1)
    one.fold(submitted("u0"))
    one.fold(UpdateRejected(run=RUN, round=1, user="u0", attempt="lease-1", code="size", reason="", client="c"))
    assert list(one.state.accepted()) == ["u0"]
