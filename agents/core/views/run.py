"""One run as whoever watches it wants to know it: a fold over its events and its live progress.

Pure: time enters only as the events' times in the stream. ``browser_client/src/dashboard/run_view.ts`` is its twin, and
``tests/vectors/run_views.json`` holds what both must make of the same events.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from agents.core.rounds.state import RoundState
from agents.core.views.round import RoundView
from agents.words.engine_kinds import EngineKind
from agents.words.events import (
    ImagesLabelled,
    ModelEvaluated,
    ModelPublished,
    Progress,
    RoundFailed,
    RoundPayload,
    RunFinished,
    RunStarted,
    Score,
    UpdateSubmitted,
)
from bus.words.envelope import Stored
from bus.words.payload import Payload

LATEST = 6
RunStatus = Literal["waiting", "labelling", "running", "completed", "failed", "cancelled"]


@dataclass(slots=True)
class ClientView:
    """One client: what it trains with (known from its first update on), what it gave, what it is doing."""

    client: str
    engine: str = ""
    kind: EngineKind = "other"
    updates: int = 0
    last_at: datetime | None = None
    progress: Progress | None = None


@dataclass(slots=True)
class LabelsView:
    """What the labeller did so far; ``dropped`` counts the images without a label by reason."""

    provider: str
    model: str | None
    last_at: datetime
    images: int = 0
    labelled_images: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass
class RunView:
    """One run.

    It begins with ``run.started`` and ends with ``run.finished``. What comes outside of that, belongs to another run or
    to a round that the run does not have, or is not newer than the last event (an event once more) changes nothing.

    Attributes:
        labelled: when each user's images had labels, in that order.
        base_evaluation: the base model's score before any round.
        base: the base model's score, from the first evaluation of all.
        rounds: by number, in the order of their first event.
        clients: by name, in the order of their first sign.
        latest: round and user of the newest updates, newest first.
    """

    run: str
    sequence: int = 0
    started: RunStarted | None = None
    started_at: datetime | None = None
    last_at: datetime | None = None
    finished: RunFinished | None = None
    labels: LabelsView | None = None
    labelled: dict[str, datetime] = field(default_factory=dict)
    base: Score | None = None
    base_evaluation: ModelEvaluated | None = None
    rounds: dict[int, RoundView] = field(default_factory=dict)
    clients: dict[str, ClientView] = field(default_factory=dict)
    latest: deque[tuple[int, str]] = field(default_factory=lambda: deque(maxlen=LATEST))

    @classmethod
    def of(cls, events: Iterable[Stored]) -> RunView:
        """The view of the run whose events these are, in stream order; of no run if there is no ``run.started``."""
        view = cls("")
        for stored in events:
            if not view.run and isinstance(stored.event.data, RunStarted):
                view.run = stored.event.data.run
            view.fold(stored)
        return view

    @property
    def status(self) -> RunStatus:
        """Where the run is."""
        if self.finished is not None:
            return self.finished.status
        if self.started is None:
            return "waiting"
        return "running" if any(one.rules.plan for one in self.rounds.values()) else "labelling"

    @property
    def users(self) -> int:
        """Users of the run; 0 before it starts."""
        return self.started.users if self.started else 0

    @property
    def rounds_planned(self) -> int:
        """Rounds of the run; 0 before it starts."""
        return self.started.config.rounds if self.started else 0

    @property
    def newest_evaluation(self) -> ModelEvaluated | None:
        """The evaluation of the highest round that has one; the base model's counts as round 0."""
        found = [one.evaluation for _, one in sorted(self.rounds.items()) if one.evaluation is not None]
        return found[-1] if found else self.base_evaluation

    def fold(self, stored: Stored) -> bool:
        """Takes one event in; says whether it changed anything."""
        data = stored.event.data
        if not self._awaits(data) or stored.sequence <= self.sequence:
            return False
        self.sequence, self.last_at = stored.sequence, stored.time
        match data:
            case RunStarted():
                self.started, self.started_at = data, stored.time
            case RunFinished():
                self.finished = data
            case ImagesLabelled():
                self._labelled(stored, data)
            case RoundPayload():
                self._in_round(stored, data)
        return True

    def note(self, progress: Progress) -> None:
        """Takes a client's live progress in, which is worth something while its task is still to be done."""
        one = self.rounds.get(progress.round)
        if progress.run == self.run and self.finished is None and one is not None and one.note(progress):
            self._client(progress.client).progress = progress

    def _awaits(self, data: Payload) -> bool:
        if data.run != self.run or self.finished is not None:
            return False
        if self.started is None or isinstance(data, RunStarted):
            return self.started is None and isinstance(data, RunStarted)
        if isinstance(data, RoundPayload):
            return (0 if isinstance(data, ModelEvaluated) else 1) <= data.round <= self.rounds_planned
        return True

    def _client(self, name: str) -> ClientView:
        return self.clients.setdefault(name, ClientView(name))

    def _labelled(self, stored: Stored, data: ImagesLabelled) -> None:
        if data.user in self.labelled:
            return
        self.labelled[data.user] = stored.time
        if self.labels is None:
            self.labels = LabelsView(data.provider, data.model, stored.time)
        labels = self.labels
        labels.last_at = stored.time
        labels.images += len(data.labels)
        labels.labelled_images += sum(label is not None for label in data.labels)
        labels.dropped.update(image.reason for image in data.dropped)
        labels.prompt_tokens += data.prompt_tokens
        labels.completion_tokens += data.completion_tokens

    def _in_round(self, stored: Stored, data: RoundPayload) -> None:
        assert self.started is not None
        if isinstance(data, ModelEvaluated):
            self.base = self.base or data.base
            if data.round == 0:
                self.base_evaluation = self.base_evaluation or data
                return
        if data.round not in self.rounds:
            self.rounds[data.round] = RoundView(RoundState(self.run, data.round, self.started.config.quorum))
        self.rounds[data.round].fold(stored)
        match data:
            case UpdateSubmitted():
                self._gave(stored, data)
            case ModelPublished() | RoundFailed():
                for client in self.clients.values():
                    client.progress = None
            case _:
                pass

    def _gave(self, stored: Stored, data: UpdateSubmitted) -> None:
        client = self._client(data.client)
        client.engine, client.kind, client.last_at = data.engine, data.client_kind, stored.time
        client.updates += 1
        if self.rounds[data.round].tasks[data.user].sequence == stored.sequence:
            self.latest.appendleft((data.round, data.user))
