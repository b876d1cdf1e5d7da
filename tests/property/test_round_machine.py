"""The round under any order of events, duplicates, crashes and clocks: what must never happen, and that it ends."""

from __future__ import annotations

from datetime import timedelta

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from agents.core.rounds.state import Refusal, RoundState
from agents.words.events import RoundClosed, RoundExtended, RoundFailed, UpdateSubmitted
from agents.words.run_config import QuorumSpec
from bus.words.envelope import Stored
from bus.words.payload import Payload
from bus.words.subjects import event_subject
from tests.builders import ANY_REF, BASE_REF, RUN, START, Stream, assigned, planned, submitted

USERS = 5
DEADLINE_S = 10.0


class RoundMachine(RuleBasedStateMachine):
    """A stream that refuses a second write to a subject, as the broker does, and aggregators that read it late."""

    @initialize(quorum=st.integers(1, USERS), grace_s=st.sampled_from([0.0, 3.0]), extensions=st.integers(0, 2))
    def start(self, quorum: int, grace_s: float, extensions: int) -> None:
        self.spec = QuorumSpec(grace_s=grace_s, extensions=extensions)
        self.quorum = quorum
        self.stream = Stream()
        self.taken: set[str] = set()
        self.clock_s = 0.0
        self.publish(planned(USERS, quorum, deadline_s=DEADLINE_S))
        for index in range(USERS):
            self.publish(assigned(f"u{index}"))
        # Two aggregators, each with its own place in the stream.
        self.read = [0, 0]
        self.states = [RoundState(RUN, 1, self.spec) for _ in range(2)]

    def publish(self, data: Payload) -> None:
        subject = event_subject(data)
        if subject not in self.taken:
            self.taken.add(subject)
            self.stream.add(data)

    @rule(user=st.integers(0, USERS + 1), stale=st.booleans())
    def an_update_arrives(self, user: int, stale: bool) -> None:
        self.publish(submitted(f"u{user}", base=ANY_REF if stale else BASE_REF))

    @rule(which=st.integers(0, 1), count=st.integers(1, 4))
    def an_aggregator_reads(self, which: int, count: int) -> None:
        for stored in self.stream.events[self.read[which] : self.read[which] + count]:
            self.states[which].fold(stored)
            self.read[which] = stored.sequence

    @rule(which=st.integers(0, 1), data=st.data())
    def an_event_is_delivered_again(self, which: int, data: st.DataObject) -> None:
        if self.read[which]:
            again = data.draw(st.integers(0, self.read[which] - 1))
            self.states[which].fold(self.stream.events[again])

    @rule(which=st.integers(0, 1))
    def an_aggregator_crashes(self, which: int) -> None:
        self.states[which], self.read[which] = RoundState(RUN, 1, self.spec), 0

    @rule(seconds=st.floats(0, 15))
    def time_passes(self, seconds: float) -> None:
        self.clock_s += seconds
        self.stream.now = START + timedelta(seconds=self.clock_s)

    @rule(which=st.integers(0, 1), skew_s=st.sampled_from([-5.0, 0.0, 5.0]))
    def an_aggregator_decides(self, which: int, skew_s: float) -> None:
        state = self.states[which]
        for refusal in state.unsaid():
            self.publish(refusal.as_event())
        decision = state.decide(START + timedelta(seconds=self.clock_s + skew_s))
        if decision is not None:
            self.publish(decision)

    @precondition(lambda self: hasattr(self, "stream"))
    @invariant()
    def at_most_one_end(self) -> None:
        ends = [one for one in self.of(RoundClosed, RoundFailed) if isinstance(one.event.data, RoundClosed)]
        assert len(ends) <= 1

    @precondition(lambda self: hasattr(self, "stream"))
    @invariant()
    def what_was_closed_is_what_a_fresh_reader_finds(self) -> None:
        closed = self.of(RoundClosed)
        if not closed:
            return
        data = closed[0].event.data
        assert isinstance(data, RoundClosed)
        state = self.folded()
        if state.failed is not None:
            return
        accepted = state.accepted()
        assert len(accepted) == data.accepted >= self.quorum
        assert all(one.sequence <= data.through for one in accepted.values())
        assert all(one.update.base_model == BASE_REF.sha256 for one in accepted.values())
        assert len({one.sequence for one in accepted.values()}) == len(accepted)

    @precondition(lambda self: hasattr(self, "stream"))
    @invariant()
    def every_update_counts_or_is_refused_never_both(self) -> None:
        state = self.folded()
        counted = {one.sequence for one in state.counted.values()}
        assert not counted & set(state.refused)
        assert counted | set(state.refused) == {one.sequence for one in self.of(UpdateSubmitted)}

    def teardown(self) -> None:
        """Whatever happened, an aggregator that reads on and watches the clock brings the round to its end."""
        if not hasattr(self, "stream"):
            return
        for _ in range(self.spec.extensions + 2):
            state = self.folded()
            if state.closed is not None or state.failed is not None:
                break
            assert state.deadline is not None
            # An aggregator whose clock was ahead may have given the round more time than two periods.
            self.clock_s = max(self.clock_s + 2 * DEADLINE_S, (state.deadline - START).total_seconds())
            self.stream.now = START + timedelta(seconds=self.clock_s)
            decision = state.decide(self.stream.now)
            assert isinstance(decision, RoundClosed | RoundFailed | RoundExtended)
            self.publish(decision)
        state = self.folded()
        assert state.closed is not None or state.failed is not None

    def folded(self) -> RoundState:
        state = RoundState(RUN, 1, self.spec)
        for stored in self.stream.events:
            assert state.fold(stored) is None or isinstance(stored.event.data, UpdateSubmitted)
        return state

    def of(self, *kinds: type[Payload]) -> list[Stored]:
        return [one for one in self.stream.events if isinstance(one.event.data, kinds)]


RoundMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestRoundMachine = RoundMachine.TestCase


def test_a_refusal_can_be_published_as_an_event() -> None:
    event = Refusal(3, submitted("u0"), "stale", "late").as_event()
    assert event_subject(event) == f"ev.{RUN}.update.rejected.1.u0.seq-3"
