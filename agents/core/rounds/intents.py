"""What the dispatcher's rules want done: the answers of ``plan``'s ``decide``."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from agents.words.events import RoundFailed, RoundPlanned, RoundStarted, TaskAssigned
from bus.words.payload import Payload
from bus.words.values import Ref


@dataclass(frozen=True)
class ReadDataset:
    """Intent: give the run its dataset object, or say why there is none (``RunState.open``)."""

    dataset: Ref


@dataclass(frozen=True)
class PlanRound:
    """Intent: put the round's spec (``task_spec``) into the store and say that it is ``planned``."""

    started: RoundStarted
    base_model: Ref
    users: tuple[str, ...]
    quorum: int
    learning_rate: float
    deadline_s: float
    server_state: Ref | None
    largest_value: float

    def planned(self, spec: Ref, now: datetime) -> RoundPlanned:
        """The event that says so; the round's time begins ``now``."""
        return RoundPlanned(
            run=self.started.run,
            round=self.started.round,
            base_model=self.base_model,
            spec=spec,
            users=len(self.users),
            quorum=self.quorum,
            learning_rate=self.learning_rate,
            deadline=now + timedelta(seconds=self.deadline_s),
            deadline_s=self.deadline_s,
            server_state=self.server_state,
            largest_value=self.largest_value,
        )

    def failed(self, reason: str) -> RoundFailed:
        """The event that says that the round cannot be planned."""
        text = f"the round cannot be planned: {reason}"[:500]
        return RoundFailed(run=self.started.run, round=self.started.round, reason=text)


@dataclass(frozen=True)
class AssignTasks:
    """Intent: say ``task.assigned`` for each of these."""

    tasks: tuple[TaskAssigned, ...]


@dataclass(frozen=True)
class Say:
    """Intent: publish this event."""

    data: Payload


Intent = ReadDataset | PlanRound | AssignTasks | Say
