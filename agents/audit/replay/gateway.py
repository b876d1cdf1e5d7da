"""Replays the gateway: its own view of the runs and its own judge, over every update that it let in or refused."""

from __future__ import annotations

import math

from agents.audit.replay.outcome import Objects, Replay
from agents.core.exchange.leases import TaskKey
from agents.core.exchange.runs import Runs
from agents.core.exchange.upload_rules import Expected, UpdateRefusedError, judge, submission
from agents.core.rounds.state import is_attempt_of_stream
from agents.words.events import RunStarted, TaskAssigned, UpdateRejected, UpdateSubmitted
from agents.words.run_config import RunDataset
from bus.words.envelope import Stored

LATE = ("stale", "duplicate")
NORM_TOLERANCE = 1e-12
"""Relative, of an L2 norm that was added up in float64."""


class GatewayReplay:
    """Folds the recorded events as the gateway does, and decides on every update again.

    What it accepted is judged again. The bytes that it refused are not in the stream; only that something came too
    late can be seen from it.
    """

    def __init__(self, started: RunStarted, dataset: RunDataset, objects: Objects) -> None:
        self._dataset = dataset
        self._objects = objects
        self._runs = Runs()
        self._tasks: dict[TaskKey, tuple[TaskAssigned, Expected | None]] = {}

    def take(self, stored: Stored, outcome: Replay) -> None:
        """Decides again where the event is a decision, and takes it in."""
        data = stored.event.data
        match data:
            case UpdateSubmitted():
                outcome.checked["gateway"] += 1
                what = f"the update of {data.user} in round {data.round}"
                outcome.compare(stored.sequence, "gateway", what, data, self._decision(data))
            case UpdateRejected() if not is_attempt_of_stream(data.attempt) and data.code in LATE:
                outcome.checked["gateway"] += 1
                late = self._runs.is_over((data.run, data.round, data.user), stored.sequence) is not None
                what = f"the refusal of an update of {data.user} in round {data.round}"
                outcome.compare(stored.sequence, "gateway", what, data.code, data.code if late else "accepted")
        self._runs.fold(stored, self._dataset)
        if isinstance(data, TaskAssigned):
            # Kept from here: the gateway knew it, however late in the run it judges the task's update.
            self._tasks.setdefault((data.run, data.round, data.user), (data, self._runs.expected(data)))

    def _decision(self, data: UpdateSubmitted) -> UpdateSubmitted | str:
        task, expected = self._tasks.get((data.run, data.round, data.user), (None, None))
        if task is None or expected is None:
            return "unknown_task: no such task was assigned before"
        update = self._objects.get(data.update.sha256)
        if update is None:
            return "digest: the recording has no such object"
        try:
            # A recording has been read only if its objects have the digests that they are named by.
            found = judge(update, data.metrics, expected)
        except UpdateRefusedError as error:
            return f"{error.code}: {error.message}"
        # Its last digits hang on the processor, and older gateways did not say it.
        same = data.norm is None or math.isclose(found, data.norm, rel_tol=NORM_TOLERANCE)
        norm = data.norm if same else found
        return submission(task, expected, data.update, data.metrics, client=data.client, engine=data.engine, norm=norm)
