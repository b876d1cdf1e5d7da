"""Replays a recorded run through the pure cores: the same events must give the same decisions and the same bits.

Needs no broker, browser or labeller: a recording holds the events of a run and the objects that they name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from agents.core.aggregation import FixedPointSum, inputs_digest
from agents.core.dispatch import AssignTasks, PlanRound, RunState, Say
from agents.core.rounds import RoundState
from agents.core.updates import decode_update
from bus.envelope import Stored
from bus.errors import FedbusError, ObjectMissingError
from bus.events import (
    ModelPublished,
    Payload,
    RoundClosed,
    RoundExtended,
    RoundFailed,
    RoundPayload,
    RoundPlanned,
    RoundStarted,
    RunFinished,
    RunStarted,
    TaskAssigned,
)
from bus.spec import RunDataset
from bus.values import Ref


@dataclass(frozen=True)
class Difference:
    """Where the replay and the recording part: the event, and what each side says."""

    sequence: int
    what: str
    recorded: str
    replayed: str

    def __str__(self) -> str:
        return f"event {self.sequence}: {self.what}: recorded {self.recorded}, replayed {self.replayed}"


@dataclass
class Replay:
    """The outcome: the digest of every round's model as replayed, and all differences in stream order."""

    run: str
    models: dict[int, str] = field(default_factory=dict)
    differences: list[Difference] = field(default_factory=list)

    @property
    def final_model(self) -> str | None:
        """SHA-256 of the last round's model as the replay computed it."""
        return self.models[max(self.models)] if self.models else None


def replay_run(events: Sequence[Stored], objects: Mapping[str, bytes]) -> Replay:
    """Runs the recorded events through the dispatcher's rules, the round state machine and the aggregation.

    Args:
        events: of one run, in stream order.
        objects: bytes by SHA-256: at least the dataset, and the base models and updates of every round.

    Raises:
        ObjectMissingError: the recording lacks the run's start or an object that is needed.
    """
    started = next((one.event.data for one in events if isinstance(one.event.data, RunStarted)), None)
    if not isinstance(started, RunStarted):
        raise ObjectMissingError("the recording has no run.started event")
    outcome = Replay(started.run)
    rounds: dict[int, list[Stored]] = {}
    dispatcher = DispatchReplay(started, objects)
    for stored in events:
        data = stored.event.data
        dispatcher.take(stored, outcome)
        if not isinstance(data, RoundPayload):
            continue
        before = rounds.setdefault(data.round, [])
        if isinstance(data, RoundClosed | RoundExtended | RoundFailed):
            _check_decision(outcome, started, before, stored)
        elif isinstance(data, ModelPublished):
            _check_model(outcome, started, before, stored, objects)
        before.append(stored)
    return outcome


class DispatchReplay:
    """Drives the dispatcher's rules with the recorded events: what it said must be what they lead to."""

    def __init__(self, started: RunStarted, objects: Mapping[str, bytes]) -> None:
        dataset = RunDataset.model_validate_json(_object(objects, started.dataset))
        self._state = RunState(started, tuple(user.user for user in dataset.users))
        self._tasks: dict[tuple[int, str], TaskAssigned] = {}

    def take(self, stored: Stored, outcome: Replay) -> None:
        """Compares one event with what the events before it lead to, when it is the dispatcher's, and folds it."""
        data = stored.event.data
        expected: object = data
        if isinstance(data, RoundPlanned):
            intent = self._state.decide()
            expected = _planned_as(intent, data) if isinstance(intent, PlanRound) else intent
        elif isinstance(data, TaskAssigned):
            expected = self._task(data)
        elif isinstance(data, RunFinished) or (isinstance(data, RoundStarted) and data.round > 1):
            intent = self._state.decide()
            # A round may be started by anybody, with settings of their own; the rules only know the plain one.
            plain = isinstance(data, RunFinished) or data == RoundStarted(run=data.run, round=data.round)
            expected = (intent.data if isinstance(intent, Say) else intent) if plain else data
        if expected != data:
            outcome.differences.append(
                Difference(stored.sequence, "the dispatcher's words", _brief(data), _brief(expected))
            )
        self._state.fold(stored)

    def _task(self, data: TaskAssigned) -> TaskAssigned | None:
        if (data.round, data.user) not in self._tasks and isinstance(intent := self._state.decide(), AssignTasks):
            self._tasks.update({(task.round, task.user): task for task in intent.tasks})
        return self._tasks.get((data.round, data.user))


def _planned_as(plan: PlanRound, recorded: RoundPlanned) -> RoundPlanned:
    """The plan as an event; its spec is an object of its own and its deadline counts from the planner's clock."""
    return recorded.model_copy(
        update={
            "base_model": plan.base_model,
            "users": len(plan.users),
            "quorum": plan.quorum,
            "learning_rate": plan.learning_rate,
            "deadline_s": plan.deadline_s,
        }
    )


def _folded(started: RunStarted, number: int, events: Sequence[Stored], through: int | None = None) -> RoundState:
    state = RoundState(started.run, number, started.config.quorum)
    for stored in events:
        if through is None or stored.sequence <= through:
            state.fold(stored)
    return state


def _check_decision(outcome: Replay, started: RunStarted, before: Sequence[Stored], stored: Stored) -> None:
    data = stored.event.data
    assert isinstance(data, RoundClosed | RoundExtended | RoundFailed)
    # A closed event says up to where its author had read; what came between that and the event itself is late.
    state = _folded(started, data.round, before, data.through if isinstance(data, RoundClosed) else None)
    if isinstance(data, RoundFailed) and state.plan is None:
        return
    decided = state.decide(stored.event.time or stored.time)
    if decided != data:
        outcome.differences.append(
            Difference(stored.sequence, f"the decision on round {data.round}", _brief(data), _brief(decided))
        )


def _check_model(
    outcome: Replay, started: RunStarted, before: Sequence[Stored], stored: Stored, objects: Mapping[str, bytes]
) -> None:
    data = stored.event.data
    assert isinstance(data, ModelPublished)
    state = _folded(started, data.round, before)
    inputs = [(user, one.update.update.sha256, one.weight) for user, one in state.accepted().items()]
    if (digest := inputs_digest(inputs)) != data.inputs_digest:
        outcome.differences.append(
            Difference(stored.sequence, f"the inputs of round {data.round}", data.inputs_digest, digest)
        )
    try:
        model = aggregate(state, objects)
    except FedbusError as error:
        outcome.differences.append(
            Difference(stored.sequence, f"the model of round {data.round}", data.model.sha256, error.message)
        )
        return
    computed = hashlib.sha256(model.astype("<f4").tobytes()).hexdigest()
    outcome.models[data.round] = computed
    if computed != data.model.sha256:
        outcome.differences.append(
            Difference(stored.sequence, f"the model of round {data.round}", data.model.sha256, computed)
        )


def aggregate(state: RoundState, objects: Mapping[str, bytes]) -> NDArray[np.float32]:
    """The model of a round from its accepted updates, float32 [parameters].

    Raises:
        FedbusError: the plan, the base model or an update is missing or malformed.
    """
    if state.plan is None:
        raise ObjectMissingError(f"round {state.round} has no plan")
    parent = np.frombuffer(_object(objects, state.plan.base_model), "<f4")
    total = FixedPointSum(parent.size)
    for candidate in state.accepted().values():
        update = candidate.update
        total.add(decode_update(_object(objects, update.update), update.encoding, parent.size), candidate.weight)
    return total.applied_to(parent)


def _object(objects: Mapping[str, bytes], ref: Ref) -> bytes:
    if ref.sha256 not in objects:
        raise ObjectMissingError(f"the recording has no object {ref.sha256}")
    return objects[ref.sha256]


def _brief(data: object) -> str:
    if isinstance(data, Payload):
        return f"{data.TYPE} {data.model_dump_json(exclude={'run', 'round'})}"
    return "nothing" if data is None else type(data).__name__
