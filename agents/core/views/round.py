"""One round as a watcher sees it: its times, its users' tasks and its model.

Which updates count is not judged here: ``agents.core.rounds.state`` does that for everybody.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from agents.core.rounds.state import Refusal, RoundState, attempt_of, is_attempt_of_stream
from agents.words.events import (
    NO_FAULT,
    ModelEvaluated,
    ModelPublished,
    Progress,
    RejectionCode,
    RoundClosed,
    RoundExtended,
    RoundFailed,
    RoundPlanned,
    RoundStarted,
    TaskAssigned,
    UpdateMetrics,
    UpdateRejected,
    UpdateSubmitted,
)
from bus.words.envelope import Stored

TaskState = Literal["assigned", "working", "submitted", "accepted", "rejected", "stale"]
Phase = Literal["asked", "open", "closed", "failed", "published", "evaluated"]
_COUNTING: tuple[TaskState, ...] = ("submitted", "accepted")


@dataclass(slots=True)
class TaskView:
    """One user's task in one round.

    An update that is ``submitted`` counts unless something comes up until the round closes; then it is ``accepted``.
    ``code`` and ``reason`` are those of the newest refusal, also while a client tries again. Figures are those of the
    newest update, ``predict_s`` and ``train_s`` in seconds.
    """

    user: str
    state: TaskState = "assigned"
    client: str = ""
    assigned_at: datetime | None = None
    submitted_at: datetime | None = None
    refused_at: datetime | None = None
    code: RejectionCode | None = None
    reason: str = ""
    sequence: int | None = None
    images: int = 0
    mismatched_images: int = 0
    trained_images: int = 0
    predict_s: float = 0.0
    train_s: float = 0.0

    @property
    def counts(self) -> bool:
        """Its update is part of the round's model, as far as is known now."""
        return self.state in _COUNTING


@dataclass
class RoundView:
    """One round.

    Attributes:
        rules: the round's plan, deadline and ends, and which updates count.
        tasks: by user, in the order of their assignment.
        counts: how many tasks are in each state.
        submitted: updates in the stream; ``refused`` of them do not count.
        rejections: refusals that somebody stated, of uploads at the gateway too, but not those of a lost race.
        mismatched_images: images of the updates that count; ``trained_images`` likewise.
    """

    rules: RoundState
    started_at: datetime | None = None
    planned_at: datetime | None = None
    extended_at: list[datetime] = field(default_factory=list)
    ended_at: datetime | None = None
    published_at: datetime | None = None
    evaluated_at: datetime | None = None
    evaluation: ModelEvaluated | None = None
    tasks: dict[str, TaskView] = field(default_factory=dict)
    counts: Counter[TaskState] = field(default_factory=Counter)
    submitted: int = 0
    refused: int = 0
    rejections: int = 0
    mismatched_images: int = 0
    trained_images: int = 0

    @property
    def number(self) -> int:
        """The round's number, from 1."""
        return self.rules.round

    @property
    def users(self) -> int:
        """Planned tasks; 0 before the plan."""
        return self.rules.plan.users if self.rules.plan else 0

    @property
    def quorum(self) -> int:
        """Updates that close the round; 0 before the plan."""
        return self.rules.plan.quorum if self.rules.plan else 0

    @property
    def phase(self) -> Phase:
        """How far it is."""
        if self.rules.failed is not None:
            return "failed"
        if self.evaluation is not None:
            return "evaluated"
        if self.rules.published is not None:
            return "published"
        if self.rules.closed is not None:
            return "closed"
        return "open" if self.rules.plan is not None else "asked"

    @property
    def ended(self) -> str:
        """Why no more updates count; empty while they do."""
        end = self.rules.failed or self.rules.closed
        return end.reason if end else ""

    @property
    def seconds(self) -> float | None:
        """From the round's start to its model, once there is one."""
        return seconds_between(self.started_at, self.published_at)

    @property
    def evaluation_seconds(self) -> float | None:
        """From the round's model to its scores, once there are some."""
        return seconds_between(self.published_at, self.evaluated_at)

    def fold(self, stored: Stored) -> None:
        """Takes one event of this round in."""
        data, at = stored.event.data, stored.time
        verdict = self.rules.fold(stored)
        match data:
            case RoundStarted():
                self.started_at = self.started_at or at
            case RoundPlanned():
                self.planned_at = self.planned_at or at
            case TaskAssigned():
                task = self._task(data.user)
                task.assigned_at = task.assigned_at or at
            case UpdateSubmitted():
                self._submitted(stored, data, verdict if isinstance(verdict, Refusal) else None)
            case UpdateRejected():
                self._rejected(data, at)
            case RoundExtended():
                if self.rules.extensions > len(self.extended_at):
                    self.extended_at.append(at)
            case RoundClosed():
                if self.rules.closed is data:
                    self.ended_at = at
                    self._settle(at)
            case RoundFailed():
                if self.rules.failed is data:
                    self.ended_at = at
            case ModelPublished():
                if self.rules.published is data:
                    self.published_at = at
            case ModelEvaluated():
                if self.evaluation is None:
                    self.evaluation, self.evaluated_at = data, at
            case _:
                pass

    def note(self, progress: Progress) -> bool:
        """Takes a client's live progress in; says whether it is about a task that is still to be done."""
        task = self.tasks.get(progress.user)
        if task is None or task.submitted_at is not None or not self.rules.open:
            return False
        self._move(task, "working")
        task.client = progress.client
        return True

    def _task(self, user: str) -> TaskView:
        if user not in self.tasks:
            self.tasks[user] = TaskView(user)
            self.counts["assigned"] += 1
        return self.tasks[user]

    def _submitted(self, stored: Stored, data: UpdateSubmitted, refusal: Refusal | None) -> None:
        self.submitted += 1
        self.refused += refusal is not None
        task = self._task(data.user)
        if refusal is not None and task.submitted_at is not None:
            # What stands about the user's update stays: this is another one.
            return
        task.client, task.sequence, task.submitted_at = data.client, stored.sequence, stored.time
        _take_figures(task, data.metrics)
        if refusal is None:
            self._move(task, "submitted")
        else:
            self._refuse(task, refusal.code, refusal.reason, stored.time)

    def _rejected(self, data: UpdateRejected, at: datetime) -> None:
        self.rejections += data.code not in NO_FAULT
        task = self._task(data.user)
        if not is_attempt_of_stream(data.attempt):
            if task.submitted_at is None:
                task.client = data.client
                self._refuse(task, data.code, data.reason, at)
        elif task.counts and task.sequence in self.rules.refused and data.attempt == attempt_of(task.sequence):
            self.refused += 1
            self._refuse(task, data.code, data.reason, at)

    def _settle(self, at: datetime) -> None:
        """Once, when the round closes: what came in time is accepted, the rest too late."""
        for task in self.tasks.values():
            if not task.counts or task.sequence is None:
                continue
            if (late := self.rules.refused.get(task.sequence)) is not None:
                self.refused += 1
                self._refuse(task, late.code, late.reason, at)
            else:
                self._move(task, "accepted")

    def _refuse(self, task: TaskView, code: RejectionCode, reason: str, at: datetime) -> None:
        self._move(task, "stale" if code == "stale" else "rejected")
        task.code, task.reason, task.refused_at = code, reason, at

    def _move(self, task: TaskView, state: TaskState) -> None:
        """Changes a task's state, and every sum that depends on it."""
        change = (state in _COUNTING) - task.counts
        self.mismatched_images += change * task.mismatched_images
        self.trained_images += change * task.trained_images
        self.counts[task.state] -= 1
        self.counts[state] += 1
        task.state = state


def seconds_between(start: datetime | None, end: datetime | None) -> float | None:
    """From ``start`` to ``end``, once both are known."""
    return (end - start).total_seconds() if start and end else None


def _take_figures(task: TaskView, metrics: UpdateMetrics) -> None:
    task.images = len(metrics.predictions)
    task.mismatched_images, task.trained_images = metrics.mismatched_images, metrics.trained_images
    task.predict_s, task.train_s = metrics.predict_s, metrics.train_s
