"""What must be known of the runs to hand out tasks and judge updates: a pure fold over the event stream.

It may begin behind the runs that are over. What of them is listed and secret is recalled meanwhile; until then only
what the runs that are open need is known not to be secret.
"""

from __future__ import annotations

from collections.abc import Iterable
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
from bus.words.payload import Payload
from bus.words.references import references

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
    sequence: int
    dataset: RunDataset | None = None
    status: str = "waiting"
    rounds: dict[int, RoundFacts] = field(default_factory=dict)


@dataclass(frozen=True)
class OldRun:
    """What is listed of a run that was over before the fold began; its end is in ``Runs`` beside it."""

    sequence: int
    rounds: int
    users: int


class Runs:
    """All runs of the stream so far.

    Attributes:
        sequence: of the last event that was taken in.
        after: where the fold began: at or before it there are only runs that are over.
    """

    def __init__(self) -> None:
        self.sequence = self.after = 0
        self._runs: dict[str, RunFacts] = {}
        self._old: dict[str, OldRun] = {}
        self._ends: dict[str, str] = {}
        """How runs ended that began before the fold did."""
        self._secret: set[str] = set()
        self._needed: set[str] | None = None
        """Digests that open runs need; nothing when all is recalled."""

    def begin(self, after: int) -> None:
        """Nothing up to there has to be taken in: it is about runs that are over by now, and is recalled meanwhile."""
        self.sequence = self.after = after
        self._needed = set()

    def fold(self, stored: Stored, dataset: RunDataset | None = None) -> Ended | None:
        """Takes one event in; answers with the task, round or run that it ended.

        Args:
            stored: any event of any run, in stream order.
            dataset: what a ``run.started`` names, if it can be read.
        """
        self.sequence = max(self.sequence, stored.sequence)
        data = stored.event.data
        self.need(ref.ref.sha256 for ref in references(data))
        if isinstance(data, RunStarted) and data.run not in self._runs:
            # What was said of it before counts for nothing.
            self._ends.pop(data.run, None)
            self._runs[data.run] = RunFacts(data, stored.sequence, dataset)
            self._deny(data, dataset)
        run = self._runs.get(data.run)
        if run is not None:
            return self._take(run, data)
        if isinstance(data, RunFinished):
            self._ends.setdefault(data.run, data.status)
        return None

    def recall(self, stored: Stored, dataset: RunDataset | None = None) -> None:
        """Takes in a ``run.started`` or ``run.finished`` from before the fold began; arguments as of ``fold``."""
        data = stored.event.data
        match data:
            case RunStarted():
                self._old.setdefault(data.run, OldRun(stored.sequence, data.config.rounds, data.users))
                self._deny(data, dataset)
            case RunFinished() if data.run in self._old:
                self._ends[data.run] = data.status

    def recalled(self) -> None:
        """All of the past is known."""
        self._needed = None

    # What is secret

    @property
    def knows_all(self) -> bool:
        """Whether every run there has been is known."""
        return self._needed is None

    def is_secret(self, sha256: str) -> bool | None:
        """Whether no client may read this object; nothing while only the past can tell."""
        if sha256 in self._secret:
            return True
        return False if self._needed is None or sha256 in self._needed else None

    def need(self, digests: Iterable[str]) -> None:
        """An open run names these objects."""
        if self._needed is not None:
            self._needed.update(digests)

    def _deny(self, started: RunStarted, dataset: RunDataset | None) -> None:
        """Without its dataset nobody can say what is secret in a run, so the dataset itself is."""
        secrets = (dataset.held_out, dataset.truth) if dataset else (started.dataset,)
        self._secret.update(ref.sha256 for ref in secrets if ref is not None)

    # What is going on

    def _take(self, run: RunFacts, data: Payload) -> Ended | None:
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

    def is_over(self, key: TaskKey, sequence: int) -> str | None:
        """Why nobody needs the update of this task, which was assigned at this place of the stream, if so."""
        name, number, user = key
        run = self._runs.get(name)
        if name in self._ends or (run is None and sequence <= self.after):
            return f"the run is {self._ends.get(name, 'over')}"
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
        """All runs that are known, oldest first."""
        found = {
            name: (run.sequence, self._ends.get(name, "running"), run.rounds, run.users)
            for name, run in self._old.items()
        }
        for name, facts in self._runs.items():
            started = facts.started
            found.setdefault(name, (facts.sequence, facts.status, started.config.rounds, started.users))
        return [
            {"run": name, "status": status, "rounds": rounds, "users": users}
            for name, (_, status, rounds, users) in sorted(found.items(), key=lambda item: item[1][0])
        ]
