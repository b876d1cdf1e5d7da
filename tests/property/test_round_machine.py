"""The round under any order of events, duplicates, crashes and clocks: what must never happen, and that it ends.

For every strategy: whatever was added when, added in vain, or lost in a crash, the model has the same bits.
"""

from __future__ import annotations

from datetime import timedelta

import hypothesis.strategies as st
import numpy as np
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from agents.core.rounds.aggregation import MakeModel, RoundAggregation
from agents.core.rounds.state import Candidate, Refusal, RoundState
from agents.core.strategies.registry import built_in
from agents.words.events import ModelPublished, RoundClosed, RoundFailed, UpdateSubmitted
from agents.words.run_config import QuorumSpec
from bus.errors import FedbusError
from bus.words.envelope import Stored
from bus.words.payload import Payload
from bus.words.subjects import event_subject
from tests.builders import (
    ANY_REF,
    BASE,
    BASE_REF,
    PARAMETERS,
    RUN,
    START,
    Stream,
    assigned,
    config,
    planned,
    publish,
    ref_of,
    run_started,
    submitted,
)

USERS = 5
DEADLINE_S = 10.0
BAD = np.full(PARAMETERS, np.nan, "<f4").tobytes()


class RoundMachine(RuleBasedStateMachine):
    """A stream that refuses a second write to a subject, as the broker does, and aggregators that read it late."""

    @initialize(
        quorum=st.integers(1, USERS),
        grace_s=st.sampled_from([0.0, 3.0]),
        extensions=st.integers(0, 2),
        strategy=st.sampled_from(sorted(built_in())),
    )
    def start(self, quorum: int, grace_s: float, extensions: int, strategy: str) -> None:
        self.spec = QuorumSpec(grace_s=grace_s, extensions=extensions)
        self.quorum = quorum
        self.stream = Stream()
        self.taken: set[str] = set()
        self.clock_s = 0.0
        self.started = run_started(config().model_copy(update={"quorum": self.spec, "strategy": strategy}))
        vectors = np.full(len(built_in()[strategy].VECTORS) * PARAMETERS, 0.25, "<f4").tobytes()
        kept = ref_of(vectors) if vectors else None
        self.objects = {ref_of(one).sha256: one for one in (BASE.tobytes(), BAD, vectors)}
        self.models: set[tuple[str, str | None]] = set()
        self.publish(planned(USERS, quorum, deadline_s=DEADLINE_S).model_copy(update={"server_state": kept}))
        for index in range(USERS):
            self.publish(assigned(f"u{index}"))
        # Two aggregators, each with its own place in the stream, and the place of the last word that it said.
        self.read = [0, 0]
        self.said = [0, 0]
        self.rounds = [self.unread() for _ in range(2)]

    def unread(self) -> RoundAggregation:
        return RoundAggregation(self.started, 1)

    def publish(self, data: Payload) -> int:
        """The place of the event that counts on this subject."""
        subject = event_subject(data)
        if subject not in self.taken:
            self.taken.add(subject)
            return self.stream.add(data).sequence
        return next(one.sequence for one in self.stream.events if event_subject(one.event.data) == subject)

    @rule(user=st.integers(0, USERS + 1), kind=st.sampled_from(["good", "good", "stale", "bad", "weightless"]))
    def an_update_arrives(self, user: int, kind: str) -> None:
        delta = np.float32([user, -user, 0.0, -0.0]) / np.float32(3)
        update = submitted(
            f"u{user}",
            delta,
            base=ANY_REF if kind == "stale" else BASE_REF,
            examples=0 if kind == "weightless" else user + 1,
            objects=self.objects,
        )
        self.publish(update.model_copy(update={"update": ref_of(BAD)}) if kind == "bad" else update)

    @rule(which=st.integers(0, 1), count=st.integers(1, 4))
    def an_aggregator_reads(self, which: int, count: int) -> None:
        for stored in self.stream.events[self.read[which] : self.read[which] + count]:
            self.rounds[which].fold(stored)
            self.read[which] = stored.sequence

    @rule(which=st.integers(0, 1), data=st.data())
    def an_event_is_delivered_again(self, which: int, data: st.DataObject) -> None:
        if self.read[which]:
            again = data.draw(st.integers(0, self.read[which] - 1))
            self.rounds[which].fold(self.stream.events[again])

    @rule(which=st.integers(0, 1))
    def an_aggregator_crashes(self, which: int) -> None:
        self.rounds[which], self.read[which], self.said[which] = self.unread(), 0, 0

    @rule(seconds=st.floats(0, 15))
    def time_passes(self, seconds: float) -> None:
        self.clock_s += seconds
        self.stream.now = START + timedelta(seconds=self.clock_s)

    @rule(which=st.integers(0, 1), data=st.data())
    def an_aggregator_adds_one(self, which: int, data: st.DataObject) -> None:
        if wanted := self.rounds[which].wanted():
            self.add(which, data.draw(st.sampled_from(wanted)))

    def add(self, which: int, candidate: Candidate) -> None:
        one = self.rounds[which]
        try:
            one.add(candidate, self.objects[candidate.update.update.sha256])
        except FedbusError as error:
            self.say(which, one.refusal_of(candidate, error))

    def say(self, which: int, data: Payload) -> None:
        self.said[which] = max(self.said[which], self.publish(data))

    @rule(which=st.integers(0, 1), skew_s=st.sampled_from([-5.0, 0.0, 5.0]))
    def an_aggregator_decides(self, which: int, skew_s: float) -> None:
        one = self.rounds[which]
        if self.read[which] < self.said[which]:
            return
        for refusal in one.refusals():
            self.say(which, refusal)
        if one.is_over:
            one.release()
            return
        for candidate in one.wanted():
            self.add(which, candidate)
        if self.read[which] < self.said[which]:
            return
        decision = one.decide(START + timedelta(seconds=self.clock_s + skew_s))
        if isinstance(decision, MakeModel):
            model = publish(one, self.objects)
            self.models.add((model.model.sha256, model.server_state.sha256 if model.server_state else None))
            self.say(which, model)
        elif decision is not None:
            self.say(which, decision)

    @precondition(lambda self: hasattr(self, "stream"))
    @invariant()
    def all_that_made_a_model_made_the_same(self) -> None:
        assert len(self.models) <= 1

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
        for _ in range(2 * (self.spec.extensions + USERS + 4)):
            before = len(self.stream.events)
            self.an_aggregator_reads(0, before)
            self.an_aggregator_decides(0, 0.0)
            state = self.folded()
            if state.published is not None or state.failed is not None:
                break
            if len(self.stream.events) == before:
                assert state.deadline is not None
                # An aggregator whose clock was ahead may have given the round more time than two periods.
                self.clock_s = max(self.clock_s + 2 * DEADLINE_S, (state.deadline - START).total_seconds())
                self.stream.now = START + timedelta(seconds=self.clock_s)
        state = self.folded()
        assert state.published is not None or state.failed is not None
        if state.published is not None:
            self.the_model_is_that_of_one_who_added_nothing_in_vain(state.published)

    def the_model_is_that_of_one_who_added_nothing_in_vain(self, published: ModelPublished) -> None:
        one = self.unread()
        for stored in self.stream.events:
            if not isinstance(stored.event.data, ModelPublished):
                one.fold(stored)
        assert publish(one, self.objects) == published

    def folded(self) -> RoundState:
        state = RoundState(RUN, 1, self.spec)
        for stored in self.stream.events:
            assert state.fold(stored) is None or isinstance(stored.event.data, UpdateSubmitted)
        return state

    def of(self, *kinds: type[Payload]) -> list[Stored]:
        return [one for one in self.stream.events if isinstance(one.event.data, kinds)]


RoundMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40)
TestRoundMachine = RoundMachine.TestCase


def test_a_refusal_can_be_published_as_an_event() -> None:
    event = Refusal(3, submitted("u0"), "stale", "late").as_event()
    assert event_subject(event) == f"ev.{RUN}.update.rejected.1.u0.seq-3"
