"""What must be known of the runs to hand out tasks and judge updates: a pure fold over the event stream."""

from __future__ import annotations

from dataclasses import dataclass, field

from agents.core.exchange.leases import TaskKey
from agents.core.exchange.upload_rules import Expected
from agents.core.rounds.state import is_attempt_of_stream
from agents.words.events import (
    ImagesLabelled,
    RoundClosed,
    RoundFailed,
    RoundPayload,
    RoundPlanned,
    RoundStarted,
    RunFinished,
    RunStarted,
    TaskAssigned,
    UpdateRejected,
    UpdateSubmitted,
)
from agents.words.run_config import QuorumSpec, RunDataset
from bus.words.envelope import Stored

RUNNING = ("waiting", "labelling", "running")
MOST_REJECTIONS = 3
"""Of one task, that the gateway writes; the others are counted."""
Ended = TaskKey | tuple[str, int] | tuple[str]
"""A task, a round or a run: all tasks whose key begins with this are over."""


@dataclass
class RoundFacts:
    """One round: its plan, whether it is over, whose updates are in, and whose task nobody can do.

    ``rejections`` names, by user, the attempts that the gateway rejected.
    """

    plan: RoundPlanned | None = None
    over: bool = False
    submitted: set[str] = field(default_factory=set)
    refused: set[str] = field(default_factory=set)
    rejections: dict[str, set[str]] = field(default_factory=dict)


@dataclass
class RunFacts:
    """One run, as far as the gateway needs to know it."""

    started: RunStarted
    dataset: RunDataset | None = None
    status: str = "waiting"
    rounds: dict[int, RoundFacts] = field(default_factory=dict)


class Runs:
    """All runs of the stream so far.

    Attributes:
        sequence: of the last event that was taken in.
        denied: digests of what no client may read.
    """

    def __init__(self) -> None:
        self.sequence = 0
        self.denied: set[str] = set()
        self._runs: dict[str, RunFacts] = {}

    def fold(self, stored: Stored, dataset: RunDataset | None = None) -> Ended | None:
        """Takes one event in; answers with the task, round or run that it ended.

        Args:
            stored: any event of any run, in stream order.
            dataset: what a ``run.started`` names, if it can be read.
        """
        self.sequence = max(self.sequence, stored.sequence)
        data = stored.event.data
        if isinstance(data, RunStarted):
            self._open(data, dataset)
        run = self._runs.get(data.run)
        return None if run is None else self._take(run, data)

    def skip_to(self, sequence: int) -> None:
        """Nothing up to there has to be taken in any more: it is about runs that are over."""
        self.sequence = max(self.sequence, sequence)

    def _open(self, started: RunStarted, dataset: RunDataset | None) -> None:
        """A run began. Without its dataset nobody can say what is secret in it, so the dataset itself is denied."""
        self._runs.setdefault(started.run, RunFacts(started, dataset))
        secrets = (dataset.held_out, dataset.truth) if dataset else (started.dataset,)
        self.denied.update(ref.sha256 for ref in secrets if ref is not None)

    def _take(self, run: RunFacts, data: object) -> Ended | None:
        match data:
            case RunFinished():
                run.status = data.status
                run.rounds.clear()
                # Nothing of it is judged any more, and a dataset may name a hundred thousand users.
                run.dataset = None
                return (data.run,)
            case RoundClosed() | RoundFailed():
                facts = self._round(run, data)
                facts.over = True
                facts.submitted.clear()
                facts.refused.clear()
                return data.run, data.round
            case UpdateSubmitted():
                self._round(run, data).submitted.add(data.user)
                return data.run, data.round, data.user
            case UpdateRejected() if not is_attempt_of_stream(data.attempt):
                facts = self._round(run, data)
                facts.rejections.setdefault(data.user, set()).add(data.attempt)
                if data.code == "refused":
                    facts.refused.add(data.user)
                    return data.run, data.round, data.user
            case RoundPlanned():
                facts = self._round(run, data)
                facts.plan = facts.plan or data
            case ImagesLabelled() if run.status == "waiting":
                run.status = "labelling"
            case RoundStarted() | TaskAssigned() if run.status in ("waiting", "labelling"):
                run.status = "running"
        return None

    def _round(self, run: RunFacts, data: RoundPayload) -> RoundFacts:
        return run.rounds.setdefault(data.round, RoundFacts())

    def is_over(self, key: TaskKey) -> str | None:
        """Why nobody needs this task's update any more, if so."""
        name, number, user = key
        run = self._runs.get(name)
        if run is None:
            return None
        if run.status not in RUNNING:
            return f"the run is {run.status}"
        facts = run.rounds.get(number)
        if facts is not None and facts.over:
            return "the round is over"
        if facts is not None and user in facts.refused:
            return "nobody can do the task"
        return "the update is in" if facts is not None and user in facts.submitted else None

    def deadline_s(self, key: TaskKey) -> float:
        """The time of the task's round, seconds; of any round of its run where the plan is not known yet."""
        run = self._runs.get(key[0])
        if run is None:
            return QuorumSpec().deadline_s
        facts = run.rounds.get(key[1])
        return facts.plan.deadline_s if facts is not None and facts.plan else run.started.config.quorum.deadline_s

    def may_reject(self, key: TaskKey, attempt: str) -> bool:
        """Whether one more rejection of the task is worth an event: the stream keeps each for ever, and once."""
        run = self._runs.get(key[0])
        if run is None or run.status not in RUNNING:
            return False
        said = run.rounds.setdefault(key[1], RoundFacts()).rejections.setdefault(key[2], set())
        if attempt in said or len(said) >= MOST_REJECTIONS:
            return False
        said.add(attempt)
        return True

    def not_rejected(self, key: TaskKey, attempt: str) -> None:
        """The rejection could not be said after all."""
        run = self._runs.get(key[0])
        if run is not None and key[1] in run.rounds:
            run.rounds[key[1]].rejections.get(key[2], set()).discard(attempt)

    def expected(self, task: TaskAssigned) -> Expected | None:
        """What the task's update has to look like; nothing when its run or round is not known."""
        run = self._runs.get(task.run)
        plan = run.rounds[task.round].plan if run is not None and task.round in run.rounds else None
        if run is None or plan is None:
            return None
        return Expected(
            config=run.started.config,
            parameters=plan.base_model.size // 4,
            base_model=plan.base_model.sha256,
            classes=len(run.dataset.classes) if run.dataset else None,
            labels=task.labels,
            largest_value=plan.largest_value,
        )

    def listing(self) -> list[dict[str, str | int]]:
        """All runs, oldest first."""
        return [
            {
                "run": name,
                "status": run.status,
                "rounds": run.started.config.rounds,
                "users": run.started.users,
            }
            for name, run in self._runs.items()
        ]
