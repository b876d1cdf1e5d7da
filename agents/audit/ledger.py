"""The ledger check: does a run's stream hold together, event by event and image by image?

Pure: ``check_events`` looks at the events alone, ``check_model`` at one round's objects. What they promise together
is that every published model is the aggregate of exactly the accepted updates, and that each image's fate is
accounted for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agents.core.learning.fixed_point import FixedPointSum, inputs_digest
from agents.core.rounds.state import RoundState, attempt_of
from agents.words.events import (
    ImagesLabelled,
    ModelEvaluated,
    ModelPublished,
    RoundPayload,
    RunFinished,
    RunStarted,
    TaskAssigned,
    UpdateMetrics,
)
from agents.words.run_config import TaskSpec
from bus.words.envelope import Stored
from bus.words.subjects import event_subject


@dataclass(frozen=True)
class Problem:
    """Something that does not hold; ``sequence`` names the event that shows it, where there is one."""

    code: str
    what: str
    sequence: int | None = None

    def __str__(self) -> str:
        where = f"event {self.sequence}: " if self.sequence is not None else ""
        return f"{where}{self.what} [{self.code}]"


def check_sequence(sequences: Sequence[int], first: int, last: int) -> list[Problem]:
    """Every number from ``first`` to ``last`` has its event; ``sequences`` are those found, in order."""
    missing = sorted(set(range(first, last + 1)) - set(sequences))
    return [Problem("sequence_gap", f"the stream has no event {number}", number) for number in missing[:100]]


def check_events(events: Sequence[Stored]) -> list[Problem]:
    """Everything that the events of one run say about each other.

    Args:
        events: all events of the run, in stream order.
    """
    problems = _check_single(events)
    started = next((one.event.data for one in events if isinstance(one.event.data, RunStarted)), None)
    if not isinstance(started, RunStarted):
        return [*problems, Problem("no_start", "the run has no run.started event")]
    labelled = {one.event.data.user: one.event.data for one in events if isinstance(one.event.data, ImagesLabelled)}
    models: dict[int, ModelPublished] = {}
    for number, state in rounds_of(started, events).items():
        problems += _check_round(number, state)
        if state.published is not None:
            models[number] = state.published
    for stored in events:
        match stored.event.data:
            case TaskAssigned() as data:
                given = labelled.get(data.user)
                if given is None or given.labels != data.labels or given.shard != data.shard:
                    problems.append(
                        Problem("labels", f"the task of {data.user} has other images or labels", stored.sequence)
                    )
            case ModelEvaluated() as data:
                wanted = models[data.round].model if data.round in models else started.base_model
                if data.model != wanted.sha256 or (data.round and data.round not in models):
                    problems.append(
                        Problem("evaluation", f"round {data.round}: another model was evaluated", stored.sequence)
                    )
            case RunFinished() as data:
                problems += _check_finish(data, started, models, stored.sequence)
            case _:
                pass
    return problems


def rounds_of(started: RunStarted, events: Sequence[Stored]) -> dict[int, RoundState]:
    """The state of each round after all events of the run."""
    states: dict[int, RoundState] = {}
    for stored in events:
        data = stored.event.data
        if isinstance(data, RoundPayload) and data.round > 0:
            state = states.setdefault(data.round, RoundState(started.run, data.round, started.config.quorum))
            state.fold(stored)
    return dict(sorted(states.items()))


def check_metrics(task: TaskAssigned, spec: TaskSpec, metrics: UpdateMetrics) -> str | None:
    """What is wrong with the account that a client gives of a task's images; nothing when it adds up."""
    if len(metrics.predictions) != len(task.labels):
        return f"{len(metrics.predictions)} predictions for {len(task.labels)} images"
    known = [(label, one) for label, one in zip(task.labels, metrics.predictions, strict=True) if label is not None]
    wrong = sum(label != prediction for label, prediction in known)
    trained = wrong * (1 + spec.augmentations) * spec.epochs
    expected = (len(known), wrong, trained)
    stated = (metrics.examples, metrics.mismatched_images, metrics.trained_images)
    if stated != expected:
        return f"labelled, mismatched and trained images are {expected}, the client says {stated}"
    return None


def check_decisions(
    events: Sequence[Stored], specs: Mapping[int, TaskSpec], accepted: Mapping[int, RoundState]
) -> list[Problem]:
    """Every image of every accepted update has its label, its prediction, and was trained exactly when they differ."""
    tasks = {
        (one.event.data.round, one.event.data.user): one.event.data
        for one in events
        if isinstance(one.event.data, TaskAssigned)
    }
    problems = []
    for number, state in accepted.items():
        for user, candidate in state.accepted().items():
            task, spec = tasks.get((number, user)), specs.get(number)
            if task is None or spec is None:
                problems.append(Problem("decision", f"round {number}: no task or spec for {user}", candidate.sequence))
            elif (wrong := check_metrics(task, spec, candidate.update.metrics)) is not None:
                problems.append(Problem("decision", f"round {number}, {user}: {wrong}", candidate.sequence))
    return problems


def check_model(state: RoundState, total: FixedPointSum, parent: NDArray[np.float32]) -> list[Problem]:
    """The published model of a round is ``parent`` plus the mean in ``total``, which holds its accepted updates."""
    if state.published is None:
        return []
    computed = hashlib.sha256(total.applied_to(parent).astype("<f4").tobytes()).hexdigest()
    if computed == state.published.model.sha256:
        return []
    text = f"round {state.round}: the model is {state.published.model.sha256}, its accepted updates give {computed}"
    return [Problem("aggregate", text)]


def _check_single(events: Sequence[Stored]) -> list[Problem]:
    seen: dict[str, int] = {}
    problems = []
    for stored in events:
        subject = event_subject(stored.event.data)
        if subject in seen:
            text = f"{subject} was written before, as event {seen[subject]}"
            problems.append(Problem("written_twice", text, stored.sequence))
        seen.setdefault(subject, stored.sequence)
    return problems


def _check_round(number: int, state: RoundState) -> list[Problem]:
    problems = []
    for at in state.refused:
        if attempt_of(at) not in state.said:
            problems.append(Problem("unsaid_refusal", f"round {number}: an update was refused without a word", at))
    if state.closed is not None and state.plan is not None:
        accepted = len(state.accepted())
        if accepted != state.closed.accepted:
            text = f"round {number}: {accepted} updates count, the closed event says {state.closed.accepted}"
            problems.append(Problem("accepted", text))
        total = state.closed.accepted + state.closed.missing + state.closed.rejected
        if total != state.plan.users:
            text = f"round {number}: {total} tasks are accounted for, {state.plan.users} were planned"
            problems.append(Problem("tasks", text))
    if state.published is not None:
        problems += _check_published(number, state, state.published)
    return problems


def _check_published(number: int, state: RoundState, published: ModelPublished) -> list[Problem]:
    problems = []
    if state.closed is None:
        problems.append(Problem("unclosed", f"round {number}: a model was published before the round closed"))
    if state.plan is None or published.parent != state.plan.base_model:
        problems.append(Problem("parent", f"round {number}: the model's parent is not the planned base model"))
    inputs = [(user, one.update.update.sha256, one.weight) for user, one in state.accepted().items()]
    if inputs_digest(inputs) != published.inputs_digest or len(inputs) != published.updates:
        problems.append(Problem("inputs", f"round {number}: the model names other inputs than the accepted updates"))
    return problems


def _check_finish(
    data: RunFinished, started: RunStarted, models: Mapping[int, ModelPublished], sequence: int
) -> list[Problem]:
    last = models[data.rounds].model if data.rounds in models else started.base_model
    problems = []
    if data.final_model is not None and data.final_model != last:
        problems.append(Problem("final_model", "the final model is not that of the last round", sequence))
    if data.status == "completed" and len(models) < started.config.rounds:
        text = f"the run completed with {len(models)} of {started.config.rounds} models"
        problems.append(Problem("rounds", text, sequence))
    return problems
