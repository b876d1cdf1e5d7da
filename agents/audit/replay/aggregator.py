"""Replays the aggregator: which updates count, when each round ends, and every bit of its model."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from agents.audit.replay.outcome import Objects, Replay, find_object, parameters_of
from agents.core.learning.encodings import decode_update
from agents.core.learning.fixed_point import FixedPointSum, inputs_digest
from agents.core.rounds.state import RoundState, attempt_of, is_attempt_of_stream
from agents.words.events import (
    ModelPublished,
    RoundClosed,
    RoundExtended,
    RoundFailed,
    RoundPayload,
    RunStarted,
    UpdateRejected,
)
from bus.errors import FedbusError, ObjectMissingError
from bus.words.envelope import Stored


class AggregatorReplay:
    """Drives the round state machine and the aggregation with the recorded events."""

    def __init__(self, started: RunStarted, objects: Objects) -> None:
        self._started = started
        self._objects = objects
        self._rounds: dict[int, list[Stored]] = {}
        self._states: dict[int, RoundState] = {}

    def take(self, stored: Stored, outcome: Replay) -> None:
        """Compares one event with what the events before it in its round lead to, when it is the aggregator's."""
        data = stored.event.data
        if not isinstance(data, RoundPayload):
            return
        before = self._rounds.setdefault(data.round, [])
        state = self._states.setdefault(data.round, self._new(data.round))
        match data:
            case RoundClosed():
                # It says up to where its author had read; what came between that and the event itself is late.
                as_read = self._new(data.round)
                for one in before:
                    if one.sequence <= data.through:
                        as_read.fold(one)
                self._decision(data, as_read, stored, outcome)
            case RoundExtended() | RoundFailed():
                self._decision(data, state, stored, outcome)
            case ModelPublished():
                self._model(data, state, stored, outcome)
            case UpdateRejected() if is_attempt_of_stream(data.attempt):
                self._refusal(data, state, stored, outcome)
        before.append(stored)
        state.fold(stored)

    def _new(self, number: int) -> RoundState:
        return RoundState(self._started.run, number, self._started.config.quorum)

    def _decision(
        self, data: RoundClosed | RoundExtended | RoundFailed, state: RoundState, stored: Stored, outcome: Replay
    ) -> None:
        # A round that could not be planned is failed by the dispatcher.
        if isinstance(data, RoundFailed) and state.plan is None:
            return
        outcome.checked["aggregator"] += 1
        decided = state.decide(stored.event.time or stored.time)
        outcome.compare(stored.sequence, "aggregator", f"the decision on round {data.round}", data, decided)

    def _refusal(self, data: UpdateRejected, state: RoundState, stored: Stored, outcome: Replay) -> None:
        expected = {attempt_of(at): one.as_event() for at, one in state.refused.items()}.get(data.attempt)
        candidate = next((one for one in state.counted.values() if attempt_of(one.sequence) == data.attempt), None)
        if expected is None and candidate is not None:
            # Its bytes were found wanting, which the fold cannot know.
            update, parameters = candidate.update, _parameters(state)
            try:
                decode_update(find_object(self._objects, update.update), update.encoding, parameters)
            except FedbusError:
                outcome.checked["aggregator"] += 1
                return
        outcome.checked["aggregator"] += 1
        outcome.compare(stored.sequence, "aggregator", f"the refusal of an update of {data.user}", data, expected)

    def _model(self, data: ModelPublished, state: RoundState, stored: Stored, outcome: Replay) -> None:
        outcome.checked["aggregator"] += 1
        inputs = [(user, one.update.update.sha256, one.weight) for user, one in state.accepted().items()]
        what = f"the inputs of round {data.round}"
        outcome.compare(stored.sequence, "aggregator", what, data.inputs_digest, inputs_digest(inputs))
        what = f"the model of round {data.round}"
        try:
            model = aggregate(state, self._objects, clip_norm=self._started.config.clip_norm)
        except FedbusError as error:
            outcome.differ(stored.sequence, "aggregator", what, data.model.sha256, error.message)
            return
        computed = hashlib.sha256(model.astype("<f4").tobytes()).hexdigest()
        outcome.models[data.round] = computed
        outcome.compare(stored.sequence, "aggregator", what, data.model.sha256, computed)


def aggregate(state: RoundState, objects: Objects, *, clip_norm: float | None = None) -> NDArray[np.float32]:
    """The model of a round from its accepted updates, float32 [parameters], each clipped to ``clip_norm``.

    Raises:
        FedbusError: the plan, the base model or an update is missing or malformed.
    """
    if state.plan is None:
        raise ObjectMissingError(f"round {state.round} has no plan")
    parent = parameters_of(objects, state.plan.base_model)
    total = FixedPointSum(parent.size)
    for candidate in state.accepted().values():
        update = candidate.update
        data = find_object(objects, update.update)
        total.add(decode_update(data, update.encoding, parent.size, clip_norm=clip_norm), candidate.weight)
    return total.applied_to(parent)


def _parameters(state: RoundState) -> int:
    return state.plan.base_model.size // 4 if state.plan is not None else 0
