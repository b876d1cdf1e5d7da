"""Clocks that jump or disagree, at the level of the rules that read them.

No process has its clock changed: time reaches the rules as an argument, so the test hands in what a wrong clock says.
"""

from __future__ import annotations

from datetime import timedelta

from agents.core.rounds.state import RoundState
from agents.words.events import RoundClosed, RoundExtended
from agents.words.run_config import QuorumSpec
from tests.builders import RUN, START, Stream, assigned, planned, submitted

HOUR = timedelta(hours=1)


def half_done(stream: Stream, *, quorum: int = 2, grace_s: float = 0.0, updates: int = 1) -> RoundState:
    """A round of three users and a deadline of a minute, with some updates in."""
    state = RoundState(RUN, 1, QuorumSpec(fraction=0.5, grace_s=grace_s, extensions=2))
    users = ["a", "b", "c"]
    state.fold(stream.add(planned(users=3, quorum=quorum)))
    for user in users:
        state.fold(stream.add(assigned(user)))
    for user in users[:updates]:
        state.fold(stream.add(submitted(user), after_s=1))
    return state


def test_a_clock_that_jumps_an_hour_ahead_extends_the_round_by_a_whole_period_and_does_not_fail_it() -> None:
    stream = Stream()
    state = half_done(stream)
    ahead = START + HOUR
    extended = state.decide(ahead)
    assert isinstance(extended, RoundExtended)
    assert timedelta(seconds=60) <= extended.deadline - ahead <= timedelta(seconds=120)
    state.fold(stream.add(extended))
    assert state.decide(ahead) is None
    # The clock is set right again: the round has more time than it needs, and closes with its quorum all the same.
    assert state.decide(stream.now) is None
    state.fold(stream.add(submitted("b")))
    assert isinstance(state.decide(stream.now), RoundClosed)


def test_a_clock_that_jumps_back_says_nothing_twice() -> None:
    stream = Stream()
    state = half_done(stream)
    extended = state.decide(START + timedelta(seconds=60))
    assert isinstance(extended, RoundExtended)
    assert extended.deadline == START + timedelta(seconds=120)
    state.fold(stream.add(extended))
    assert state.decide(START - HOUR) is None
    assert state.next_decision_at() == START + timedelta(seconds=120)


def test_a_quorum_without_grace_closes_at_once_although_this_clock_lags_an_hour_behind_the_brokers() -> None:
    stream = Stream()
    state = half_done(stream, updates=2)
    closed = state.decide(stream.now - HOUR)
    assert isinstance(closed, RoundClosed)
    assert closed.reason == "quorum"


def test_the_grace_ends_when_the_stream_says_so_although_this_clock_lags() -> None:
    stream = Stream()
    state = half_done(stream, grace_s=5, updates=2)
    assert state.decide(stream.now - HOUR) is None
    state.fold(stream.add(assigned("c"), after_s=5))
    assert isinstance(state.decide(stream.now - HOUR), RoundClosed)
