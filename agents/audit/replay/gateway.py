"""Replays the gateway: every update that it let in passes its checks again, and none that it had to refuse is there."""

from __future__ import annotations

from agents.audit.replay.outcome import Objects, Replay
from agents.core.exchange.upload_rules import Expected, UpdateRefusedError, check_metrics, check_size, check_update
from agents.core.rounds.state import is_attempt_of_stream
from agents.words.events import (
    RoundClosed,
    RoundFailed,
    RoundPlanned,
    RunFinished,
    RunStarted,
    TaskAssigned,
    UpdateRejected,
    UpdateSubmitted,
)
from agents.words.run_config import RunDataset
from bus.words.envelope import Stored

LATE = ("stale", "duplicate")


class GatewayReplay:
    """Drives the rules of an upload with the recorded updates.

    What it accepted is judged again. The bytes that it refused are not in the stream; only that something came too
    late can be seen from it.
    """

    def __init__(self, started: RunStarted, dataset: RunDataset, objects: Objects) -> None:
        self._started = started
        self._classes = len(dataset.classes)
        self._objects = objects
        self._plans: dict[int, RoundPlanned] = {}
        self._tasks: dict[tuple[int, str], TaskAssigned] = {}
        self._over: set[int] = set()
        self._submitted: set[tuple[int, str]] = set()

    def take(self, stored: Stored, outcome: Replay) -> None:
        """Judges one submitted update again."""
        data = stored.event.data
        match data:
            case RoundPlanned():
                self._plans.setdefault(data.round, data)
            case TaskAssigned():
                self._tasks.setdefault((data.round, data.user), data)
            case UpdateSubmitted():
                outcome.checked["gateway"] += 1
                what = f"the update of {data.user} in round {data.round}"
                outcome.compare(stored.sequence, "gateway", what, "accepted", self._judge(data))
                self._submitted.add((data.round, data.user))
            case RoundClosed() | RoundFailed():
                self._over.add(data.round)
            case RunFinished():
                self._over.update(self._plans)
            case UpdateRejected() if not is_attempt_of_stream(data.attempt) and data.code in LATE:
                outcome.checked["gateway"] += 1
                late = data.round in self._over or (data.round, data.user) in self._submitted
                what = f"the refusal of an update of {data.user} in round {data.round}"
                outcome.compare(stored.sequence, "gateway", what, data.code, data.code if late else "accepted")

    def _judge(self, data: UpdateSubmitted) -> str:
        plan, task = self._plans.get(data.round), self._tasks.get((data.round, data.user))
        if plan is None or task is None:
            return "unknown_task: no such task was assigned before"
        expected = Expected(
            config=self._started.config,
            parameters=plan.base_model.size // 4,
            base_model=plan.base_model.sha256,
            classes=self._classes,
            labels=task.labels,
        )
        if data.encoding != self._started.config.training.encoding:
            return f"encoding: the run's is {self._started.config.training.encoding}, not {data.encoding}"
        if data.base_model != expected.base_model:
            return "stale: it was trained from another model"
        update = self._objects.get(data.update.sha256)
        if update is None:
            return "digest: the recording has no such object"
        try:
            check_size(len(update), expected, len(update))
            check_update(update, expected)
            check_metrics(data.metrics, expected)
        except UpdateRefusedError as error:
            return f"{error.code}: {error.message}"
        return "accepted"
