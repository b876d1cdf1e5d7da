"""What a watcher wants to know of a run: a fold over its events and its live progress."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from agents.words.events import (
    ImagesLabelled,
    ModelEvaluated,
    ModelPublished,
    Progress,
    RoundClosed,
    RoundExtended,
    RoundFailed,
    RoundPlanned,
    RoundStarted,
    RunFinished,
    RunStarted,
    Score,
    TaskAssigned,
    UpdateRejected,
    UpdateSubmitted,
)
from bus.words.envelope import Stored


@dataclass
class RoundView:
    """How far one round is."""

    number: int
    users: int = 0
    quorum: int = 0
    assigned: int = 0
    submitted: int = 0
    rejected: int = 0
    mismatched_images: int = 0
    trained_images: int = 0
    score: Score | None = None
    started: datetime | None = None
    published: datetime | None = None

    @property
    def seconds(self) -> float | None:
        """From the round's start to its model, once there is one."""
        if self.started is None or self.published is None:
            return None
        return (self.published - self.started).total_seconds()


@dataclass
class RunView:
    """How far one run is."""

    run: str
    users: int = 0
    rounds_planned: int = 0
    labelled: int = 0
    images_labelled: int = 0
    images_dropped: int = 0
    base: Score | None = None
    rounds: dict[int, RoundView] = field(default_factory=dict)
    finished: RunFinished | None = None
    sequence: int = 0
    at_work: dict[str, Progress] = field(default_factory=dict)
    """The last progress of each client."""

    def fold(self, stored: Stored) -> str | None:
        """Takes one event in; answers with one line about it when it is worth a line, else with nothing."""
        self.sequence = stored.sequence
        match stored.event.data:
            case RunStarted() as data:
                self.users, self.rounds_planned = data.users, data.config.rounds
                return f"run {data.run}: {data.users} users, {data.config.rounds} rounds, seed {data.config.seed}"
            case ImagesLabelled() as data:
                return self._labelled(data)
            case RoundStarted() as data:
                self._round(data.round).started = stored.time
                return f"round {data.round} started"
            case RoundPlanned() as data:
                view = self._round(data.round)
                view.users, view.quorum = data.users, data.quorum
            case TaskAssigned() as data:
                self._round(data.round).assigned += 1
            case UpdateSubmitted() as data:
                view = self._round(data.round)
                view.submitted += 1
                view.mismatched_images += data.metrics.mismatched_images
                view.trained_images += data.metrics.trained_images
                if view.users and view.submitted % max(1, view.users // 4) == 0:
                    return f"round {data.round}: {view.submitted} of {view.users} updates"
            case UpdateRejected() as data:
                self._round(data.round).rejected += 1
                return f"round {data.round}: update of {data.user} rejected ({data.code}): {data.reason}"
            case RoundExtended() as data:
                return f"round {data.round}: no quorum yet, extended until {data.deadline:%H:%M:%S}"
            case RoundClosed() as data:
                return f"round {data.round} closed ({data.reason}): {data.accepted} accepted, {data.missing} missing"
            case RoundFailed() as data:
                return f"round {data.round} failed: {data.reason}"
            case ModelPublished() as data:
                self._round(data.round).published = stored.time
                self.at_work.clear()
            case ModelEvaluated() as data:
                return self._evaluated(data)
            case RunFinished() as data:
                self.finished = data
                return f"run {data.status}{': ' + data.reason if data.reason else ''}"
            case _:
                pass
        return None

    def note(self, progress: Progress) -> None:
        """Takes a client's live progress in."""
        self.at_work[progress.client] = progress

    def _round(self, number: int) -> RoundView:
        return self.rounds.setdefault(number, RoundView(number))

    def _labelled(self, data: ImagesLabelled) -> str | None:
        self.labelled += 1
        self.images_labelled += sum(label is not None for label in data.labels)
        self.images_dropped += len(data.dropped)
        if self.labelled != self.users:
            return None
        return f"labelled {self.images_labelled} images of {self.users} users, {self.images_dropped} dropped"

    def _evaluated(self, data: ModelEvaluated) -> str:
        self.base = data.base
        if data.round == 0:
            return f"base model: accuracy {data.base.accuracy:.1%} on {data.images} held-out images"
        self._round(data.round).score = data.updated
        gain = data.updated.accuracy - data.base.accuracy
        return (
            f"round {data.round}: accuracy {data.updated.accuracy:.1%} ({100 * gain:+.1f} points over the base model)"
        )
