"""Replays the aggregator: which updates count, when each round ends, and every bit of its model."""

from __future__ import annotations

from agents.audit.ledger import LOST
from agents.audit.replay.outcome import Objects, Replay, find_object
from agents.core.rounds.aggregation import RoundAggregation
from agents.core.rounds.state import attempt_of, is_attempt_of_stream
from agents.core.strategies.strategy import StrategyBrokenError
from agents.words.events import (
    ModelPublished,
    RoundClosed,
    RoundExtended,
    RoundFailed,
    RoundPayload,
    RunStarted,
    UpdateRejected,
)
from bus.errors import FedbusError, ObjectCorruptError
from bus.words.envelope import Stored


class AggregatorReplay:
    """Drives the rounds' rules and their aggregation with the recorded events and objects."""

    def __init__(self, started: RunStarted, objects: Objects) -> None:
        self._started = started
        self._objects = objects
        self._events: dict[int, list[Stored]] = {}
        self._rounds: dict[int, RoundAggregation] = {}

    def take(self, stored: Stored, outcome: Replay) -> None:
        """Compares one event with what the events before it in its round lead to, when it is the aggregator's."""
        data = stored.event.data
        if not isinstance(data, RoundPayload):
            return
        before = self._events.setdefault(data.round, [])
        one = self._rounds.setdefault(data.round, RoundAggregation(self._started, data.round))
        match data:
            case RoundClosed():
                self._decision(self._as_read(data), stored, outcome)
            case RoundFailed() if data.code is not None:
                self._broken(data, one, stored, outcome)
            # A round that could not be planned is failed by the dispatcher.
            case RoundExtended() | RoundFailed() if one.state.plan is not None:
                self._decision(one, stored, outcome)
            case ModelPublished():
                self._model(data, one, stored, outcome)
            case UpdateRejected() if is_attempt_of_stream(data.attempt):
                self._refusal(data, one, stored, outcome)
        before.append(stored)
        one.fold(stored)
        if one.is_over:
            one.release()

    def _as_read(self, closed: RoundClosed) -> RoundAggregation:
        """The round up to where the author of ``closed`` had read it; what came after that is late."""
        one = self._rounds[closed.round]
        if one.state.last_sequence > closed.through:
            one = RoundAggregation(self._started, closed.round)
            for stored in self._events[closed.round]:
                if stored.sequence <= closed.through:
                    one.fold(stored)
        return one

    def _decision(self, one: RoundAggregation, stored: Stored, outcome: Replay) -> None:
        decided = one.decide(stored.event.time or stored.time)
        _said(outcome, stored, f"the decision on round {one.state.round}", decided)

    def _broken(self, data: RoundFailed, one: RoundAggregation, stored: Stored, outcome: Replay) -> None:
        """The strategy's failure: it fails here in the same way, whatever the words, or makes a model after all."""
        expected: object = None
        if data.code in LOST:
            # What could not be read was found in the store, which the rules do not see.
            _said(outcome, stored, f"the failure of round {data.round}", data if one.state.closed else None)
            return
        try:
            expected = f"a model {remade(one, self._objects)[0]}" if one.state.closed else None
            if expected is None:
                _refused(one, self._objects)
        except StrategyBrokenError:
            pass
        except FedbusError as error:
            expected = error.message
        decided = one.decide(stored.event.time or stored.time)
        if expected is None:
            expected = decided
        if isinstance(expected, RoundFailed) and expected.code == data.code:
            expected = expected.model_copy(update={"reason": data.reason})
        _said(outcome, stored, f"the failure of round {data.round}", expected)

    def _refusal(self, data: UpdateRejected, one: RoundAggregation, stored: Stored, outcome: Replay) -> None:
        expected = _of_attempt(data.attempt, one.refusals())
        if expected is None and any(attempt_of(at.sequence) == data.attempt for at in one.wanted()):
            # Its bytes must have been found wanting. How that is put in words may have changed since.
            expected = _of_attempt(data.attempt, _refused(one, self._objects))
            expected = expected and expected.model_copy(update={"reason": data.reason})
        _said(outcome, stored, f"the refusal of an update of {data.user}", expected)

    def _model(self, data: ModelPublished, one: RoundAggregation, stored: Stored, outcome: Replay) -> None:
        outcome.checked["aggregator"] += 1

        def same(what: str, recorded: object, replayed: object) -> None:
            outcome.compare(stored.sequence, "aggregator", f"{what} of round {data.round}", recorded, replayed)

        if one.state.plan is None:
            same("the model", data.model.sha256, None)
            return
        words = one.published(data.model, data.server_state)
        same("the inputs", data.inputs_digest, words.inputs_digest)
        same("what is said", data, words.model_copy(update={"inputs_digest": data.inputs_digest}))
        try:
            model, server_state = remade(one, self._objects)
        except FedbusError as error:
            same("the model", data.model.sha256, error.message)
            return
        outcome.models[data.round] = model
        same("the model", data.model.sha256, model)
        same("the server's state", data.server_state.sha256 if data.server_state else None, server_state)


def remade(one: RoundAggregation, objects: Objects) -> tuple[str, str | None]:
    """SHA-256 of a round's model, and of the server's state, if any, from recorded objects.

    Raises:
        FedbusError: an object that counts is missing or malformed, or the strategy is not here.
    """
    plan, parent = one.required_plan(), _parent(one, objects)
    before = find_object(objects, plan.server_state) if plan.server_state is not None else None
    for candidate in one.wanted():
        one.add(candidate, find_object(objects, candidate.update.update))
    return one.digests(parent, before)


def _refused(one: RoundAggregation, objects: Objects) -> list[UpdateRejected]:
    """Adds what the round wants; answers with the refusals of updates whose bytes are wanting."""
    refused = []
    for candidate in one.wanted():
        try:
            _parent(one, objects)
            one.add(candidate, find_object(objects, candidate.update.update))
        except StrategyBrokenError:
            break
        except FedbusError as error:
            refused.append(one.refusal_of(candidate, error))
    return refused


def _parent(one: RoundAggregation, objects: Objects) -> bytes:
    """The base model, looked at first: a plan may say of it that it is larger than any memory."""
    ref = one.required_plan().base_model
    if len(parent := find_object(objects, ref)) != ref.size:
        raise ObjectCorruptError(f"model {ref.sha256} has {len(parent)} bytes, the plan says {ref.size}")
    return parent


def _of_attempt(attempt: str, refusals: list[UpdateRejected]) -> UpdateRejected | None:
    return next((one for one in refusals if one.attempt == attempt), None)


def _said(outcome: Replay, stored: Stored, what: str, expected: object) -> None:
    outcome.checked["aggregator"] += 1
    outcome.compare(stored.sequence, "aggregator", what, stored.event.data, expected)
