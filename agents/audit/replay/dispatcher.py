"""Replays the dispatcher: plans, assignments, the next round and the end are what its rules make of the events."""

from __future__ import annotations

from agents.audit.replay.outcome import Replay
from agents.core.rounds.plan import AssignTasks, PlanRound, RunState, Say
from agents.words.events import RoundPlanned, RoundStarted, RunFinished, RunStarted, TaskAssigned
from agents.words.run_config import RunDataset
from bus.words.envelope import Stored


class DispatcherReplay:
    """Drives the dispatcher's rules with the recorded events."""

    def __init__(self, started: RunStarted, dataset: RunDataset) -> None:
        self._state = RunState(started, tuple(user.user for user in dataset.users))
        self._tasks: dict[tuple[int, str], TaskAssigned] = {}

    def take(self, stored: Stored, outcome: Replay) -> None:
        """Compares one event with what the events before it lead to, when it is the dispatcher's, and folds it."""
        data = stored.event.data
        expected: object = None
        match data:
            case RoundPlanned():
                intent = self._state.decide()
                expected = _planned_as(intent, data) if isinstance(intent, PlanRound) else intent
            case TaskAssigned():
                expected = self._task(data)
            case RunFinished():
                expected = self._said()
            # A round may be started by anybody, with settings of their own; the rules only know the plain one.
            case RoundStarted() if data.round > 1 and data == RoundStarted(run=data.run, round=data.round):
                expected = self._said()
            case _:
                self._state.fold(stored)
                return
        outcome.checked["dispatcher"] += 1
        outcome.compare(stored.sequence, "dispatcher", f"what it says ({data.TYPE})", data, expected)
        self._state.fold(stored)

    def _said(self) -> object:
        intent = self._state.decide()
        return intent.data if isinstance(intent, Say) else intent

    def _task(self, data: TaskAssigned) -> TaskAssigned | None:
        if (data.round, data.user) not in self._tasks and isinstance(intent := self._state.decide(), AssignTasks):
            self._tasks.update({(task.round, task.user): task for task in intent.tasks})
        return self._tasks.get((data.round, data.user))


def _planned_as(plan: PlanRound, recorded: RoundPlanned) -> RoundPlanned:
    """The plan as an event; its spec is an object of its own and its deadline counts from the planner's clock."""
    return recorded.model_copy(
        update={
            "base_model": plan.base_model,
            "users": len(plan.users),
            "quorum": plan.quorum,
            "learning_rate": plan.learning_rate,
            "deadline_s": plan.deadline_s,
        }
    )
