"""The ledger check: does a run's stream hold together, event by event and image by image?

Pure: ``check_events`` looks at the events alone, ``check_model`` at one round's objects. What they promise together
is that every published model is the aggregate of exactly the accepted updates, and that each image's fate is
accounted for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from agents.core.rounds.aggregation import RoundAggregation
from agents.core.rounds.state import attempt_of
from agents.words.events import (
    ImagesLabelled,
    ModelEvaluated,
    ModelPublished,
    RoundFailed,
    RoundPayload,
    RunFinished,
    RunStarted,
    TaskAssigned,
    UpdateMetrics,
)
from agents.words.run_config import TaskSpec
from bus.words.envelope import Stored
from bus.words.subjects import event_subject

LOST = ("object_missing", "object_corrupt")
"""Codes of failures that follow from the store and not from the rules."""


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
    for number, one in rounds_of(started, events).items():
        problems += _check_round(one, models.get(number - 1))
        if one.state.published is not None:
            models[number] = one.state.published
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


def rounds_of(started: RunStarted, events: Sequence[Stored]) -> dict[int, RoundAggregation]:
    """Each round after all events of the run; nothing has been added yet."""
    rounds: dict[int, RoundAggregation] = {}
    for stored in events:
        data = stored.event.data
        if isinstance(data, RoundPayload) and data.round > 0:
            rounds.setdefault(data.round, RoundAggregation(started, data.round)).fold(stored)
    return dict(sorted(rounds.items()))


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
    events: Sequence[Stored], specs: Mapping[int, TaskSpec], rounds: Mapping[int, RoundAggregation]
) -> list[Problem]:
    """Every image of every accepted update has its label, its prediction, and was trained exactly when they differ."""
    tasks = {
        (one.event.data.round, one.event.data.user): one.event.data
        for one in events
        if isinstance(one.event.data, TaskAssigned)
    }
    problems = []
    for number, one in rounds.items():
        for user, candidate in one.state.accepted().items():
            task, spec = tasks.get((number, user)), specs.get(number)
            if task is None or spec is None:
                problems.append(Problem("decision", f"round {number}: no task or spec for {user}", candidate.sequence))
            elif (wrong := check_metrics(task, spec, candidate.update.metrics)) is not None:
                problems.append(Problem("decision", f"round {number}, {user}: {wrong}", candidate.sequence))
    return problems


def check_model(one: RoundAggregation, model: str, server_state: str | None) -> list[Problem]:
    """What was published of a round is what its aggregation gives: the digests of model and server's state."""
    published, number = one.state.published, one.state.round
    if published is None:
        return []
    problems = []
    if model != published.model.sha256:
        text = f"round {number}: the model is {published.model.sha256}, its accepted updates give {model}"
        problems.append(Problem("aggregate", text))
    stated = published.server_state.sha256 if published.server_state is not None else None
    if server_state != stated:
        text = f"round {number}: the server's state is {stated}, its accepted updates give {server_state}"
        problems.append(Problem("server_state", text))
    return problems


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


def _check_round(one: RoundAggregation, before: ModelPublished | None) -> list[Problem]:
    """What does not hold in a round; ``before`` is what the round before published."""
    state, number = one.state, one.state.round
    problems = []
    for at in state.refused:
        if attempt_of(at) not in state.said:
            problems.append(Problem("unsaid_refusal", f"round {number}: an update was refused without a word", at))
    kept = before.server_state if before is not None and state.plan and state.plan.base_model == before.model else None
    if state.plan is not None and state.plan.server_state != kept:
        text = f"round {number}: the plan names another server's state than the round before left"
        problems.append(Problem("server_state", text))
    if state.closed is not None and state.plan is not None:
        accepted = len(state.accepted())
        if accepted != state.closed.accepted:
            text = f"round {number}: {accepted} updates count, the closed event says {state.closed.accepted}"
            problems.append(Problem("accepted", text))
        total = state.closed.accepted + state.closed.missing + state.closed.rejected
        if total != state.plan.users:
            text = f"round {number}: {total} tasks are accounted for, {state.plan.users} were planned"
            problems.append(Problem("tasks", text))
    if state.failed is not None and (wrong := _implausible(one, state.failed)):
        problems.append(Problem("failure", f"round {number}: {wrong}"))
    if state.published is not None:
        problems += _check_published(one, state.published)
    return problems


def _implausible(one: RoundAggregation, failed: RoundFailed) -> str:
    """What speaks against a failure that was given a code; its form alone is looked at, the replay does the rest."""
    state = one.state
    if failed.code is None:
        return ""
    if state.plan is None:
        return f"it failed with {failed.code} and was never planned"
    if not failed.reason:
        return f"it failed with {failed.code} and without a reason"
    if failed.code in LOST and state.closed is None:
        return f"it failed with {failed.code} before it was closed: such an update is refused, and the round goes on"
    if failed.code not in LOST and not state.counted:
        return f"it failed with {failed.code} and no update counts that the strategy could have been given"
    return ""


def _check_published(one: RoundAggregation, published: ModelPublished) -> list[Problem]:
    state, number = one.state, one.state.round
    problems = []
    if state.closed is None:
        problems.append(Problem("unclosed", f"round {number}: a model was published before the round closed"))
    if state.plan is None or published.parent != state.plan.base_model:
        problems.append(Problem("parent", f"round {number}: the model's parent is not the planned base model"))
    if state.plan is not None:
        words = one.published(published.model, published.server_state)
        if (words.inputs_digest, words.updates) != (published.inputs_digest, published.updates):
            text = f"round {number}: the model names other inputs than the accepted updates"
            problems.append(Problem("inputs", text))
        if words.strategy != published.strategy:
            text = f"round {number}: the model was made by {published.strategy}, the run asks for {words.strategy}"
            problems.append(Problem("strategy", text))
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
