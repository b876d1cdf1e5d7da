"""Replays the dispatcher: plans, assignments, the next round and the end are what its rules make of the events."""

from __future__ import annotations

from pydantic import ValidationError

from agents.audit.replay.outcome import Objects, Replay, find_object
from agents.core.rounds.intents import AssignTasks, Intent, PlanRound, ReadDataset, Say
from agents.core.rounds.plan import RunState, task_spec
from agents.words.events import RoundFailed, RoundPlanned, RoundStarted, RunFinished, RunStarted, TaskAssigned
from agents.words.run_config import TaskSpec
from bus.words.envelope import Stored


class DispatcherReplay:
    """Drives the dispatcher's rules with the recorded events."""

    def __init__(self, started: RunStarted, objects: Objects) -> None:
        self._started = started
        self._objects = objects
        self._state = RunState(started)
        self._tasks: dict[tuple[int, str], TaskAssigned] = {}

    def take(self, stored: Stored, outcome: Replay) -> None:
        """Compares one event with what the events before it lead to, when it is the dispatcher's, and folds it."""
        data = stored.event.data
        expected: object = None
        match data:
            case RoundPlanned():
                intent = self._decided()
                expected = self._planned(intent, data, stored, outcome) if isinstance(intent, PlanRound) else intent
            case TaskAssigned():
                expected = self._task(data)
            # An operator may cancel a run at any time; only the other ends follow from what happened.
            case RunFinished() if data.status != "cancelled":
                expected = self._said()
            # A round may be started by anybody, with settings of their own; the rules only know the plain one.
            case RoundStarted() if data.round > 1 and data == RoundStarted(run=data.run, round=data.round):
                expected = self._said()
            case RoundFailed() if not self._is_planned(data.round):
                expected = self._said()
                if isinstance(expected, PlanRound):
                    # Why it cannot be planned was found in the store, which the rules do not see.
                    expected = expected.failed("").model_copy(update={"reason": data.reason})
            case _:
                self._state.fold(stored)
                return
        outcome.checked["dispatcher"] += 1
        outcome.compare(stored.sequence, "dispatcher", f"what it says ({data.TYPE})", data, expected)
        self._state.fold(stored)

    def _decided(self) -> Intent | None:
        intent = self._state.decide()
        if isinstance(intent, ReadDataset):
            self._state.open(find_object(self._objects, intent.dataset))
            intent = self._state.decide()
        return intent

    def _said(self) -> object:
        intent = self._decided()
        return intent.data if isinstance(intent, Say) else intent

    def _task(self, data: TaskAssigned) -> TaskAssigned | None:
        if (data.round, data.user) not in self._tasks and isinstance(intent := self._decided(), AssignTasks):
            self._tasks.update({(task.round, task.user): task for task in intent.tasks})
        return self._tasks.get((data.round, data.user))

    def _is_planned(self, number: int) -> bool:
        facts = self._state.rounds.get(number)
        return facts is not None and facts.planned is not None

    def _planned(self, plan: PlanRound, recorded: RoundPlanned, stored: Stored, outcome: Replay) -> RoundPlanned:
        """The plan as an event; its spec is compared by content, and its deadline counts from the planner's clock."""
        if (body := self._objects.get(recorded.spec.sha256)) is not None:
            try:
                spec: TaskSpec | None = TaskSpec.model_validate_json(body)
            except ValidationError:
                spec = None
            expected = task_spec(self._started, plan)
            if spec is not None:
                # Older dispatchers made the optimizer's graph, from artifacts whose files a recording need not hold.
                expected = expected.model_copy(update={"optimizer": spec.optimizer})
            outcome.compare(stored.sequence, "dispatcher", f"the spec of round {recorded.round}", spec, expected)
        expected_plan = plan.planned(recorded.spec, stored.time).model_copy(update={"deadline": recorded.deadline})
        # Older dispatchers set no bound on values, and then there was none.
        bound = None if recorded.largest_value is None else expected_plan.largest_value
        return expected_plan.model_copy(update={"largest_value": bound})
