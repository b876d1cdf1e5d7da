"""The dispatcher: plans rounds, assigns their tasks, starts the next round and ends the run."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime, timedelta

from pydantic import ValidationError

from agents.core.rounds.plan import AssignTasks, PlanRound, RunState, Say
from agents.runtime.round_figures import Figure, RoundFigure, Source, expose, round_figures
from agents.runtime.tasks import until
from agents.words.events import RoundFailed, RoundPlanned, RunFinished, RunStarted
from agents.words.run_config import RunDataset, TaskSpec
from bus.client import Bus, CaughtUp
from bus.errors import ConflictingEventError, ObjectCorruptError, ObjectMissingError
from bus.process.crash_points import crash_point
from bus.words.envelope import Event, Stored
from bus.words.payload import Payload

log = logging.getLogger(__name__)


class Dispatcher:
    """The shell around ``RunState``: feeds it the stream and does what it decides."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._runs: dict[str, RunState] = {}
        self._causes: dict[str, Event] = {}
        self._changed: set[str] = set()
        self._live = False
        self._seen = 0
        self._own = 0

    async def serve(self) -> None:
        """Follows the stream for ever; decides only once it has read all that there is."""
        expose(Source(self.figures, lambda: self._live))
        async with self._bus.follow("ev.>") as items:
            async for item in items:
                if isinstance(item, CaughtUp):
                    self._live = True
                else:
                    await self._take(item)
                if self._live and self._seen >= self._own:
                    for run in list(self._changed):
                        self._changed.discard(run)
                        await self._act(run)

    def figures(self) -> list[Figure]:
        """The rounds of the runs that are not finished."""
        return round_figures(
            RoundFigure(
                run=state.run,
                round=number,
                since=facts.since,
                closed=facts.closed,
                published=facts.published is not None,
                failed=facts.failed is not None,
            )
            for state in self._runs.values()
            for number, facts in state.rounds.items()
        )

    async def _take(self, stored: Stored) -> None:
        self._seen = stored.sequence
        data = stored.event.data
        if isinstance(data, RunStarted) and data.run not in self._runs:
            await self._open(data)
        state = self._runs.get(data.run)
        if state is None:
            return
        state.fold(stored)
        self._causes[data.run] = stored.event
        self._changed.add(data.run)
        if isinstance(data, RunFinished):
            del self._runs[data.run], self._causes[data.run]
            log.info("run %s", data.status, extra={"run": data.run})

    async def _open(self, started: RunStarted) -> None:
        try:
            dataset = RunDataset.model_validate_json(await self._bus.objects.get(started.dataset))
        except (ObjectMissingError, ObjectCorruptError, ValidationError) as error:
            await self._publish(
                RunFinished(run=started.run, status="failed", reason=f"dataset: {error}"[:500], rounds=0), None
            )
            return
        self._runs[started.run] = RunState(started, tuple(user.user for user in dataset.users))

    async def _act(self, run: str) -> None:
        """Does what the state asks for; the events that come of it bring the next decision."""
        state = self._runs.get(run)
        if state is None or (intent := state.decide()) is None:
            return
        cause = self._causes.get(run)
        match intent:
            case Say(data):
                await self._publish(data, cause)
            case AssignTasks(tasks):
                published = await self._bus.publish_many(tasks, cause=cause)
                crash_point("dispatcher.task.assigned")
                self._own = max(self._own, *(one.sequence for one in published))
                log.info("assigned %d tasks", len(tasks), extra={"run": run, "round": tasks[0].round})
            case PlanRound():
                try:
                    await self._plan(state, intent, cause)
                except (ObjectMissingError, ObjectCorruptError, ValidationError) as error:
                    reason = f"the round cannot be planned: {error}"[:500]
                    await self._publish(RoundFailed(run=run, round=intent.started.round, reason=reason), cause)

    async def _plan(self, state: RunState, plan: PlanRound, cause: Event | None) -> None:
        config, number = state.started.config, plan.started.round
        crash_point("dispatcher.planning")
        if await self._bus.objects.info(plan.base_model.name) is None:
            raise ObjectMissingError(f"base model {plan.base_model.name} is not in the object store")
        spec = TaskSpec(
            run=state.run,
            round=number,
            artifacts=state.started.artifacts,
            base_model=plan.base_model,
            kind=config.kind,
            learning_rate=plan.learning_rate,
            epochs=config.training.epochs,
            augmentations=config.training.augmentations,
            augmentation=config.training.augmentation,
            encoding=config.training.encoding,
        )
        ref = await self._bus.objects.put(spec.model_dump_json().encode(), media_type="application/json")
        crash_point("dispatcher.spec_put")
        planned = RoundPlanned(
            run=state.run,
            round=number,
            base_model=plan.base_model,
            spec=ref,
            users=len(plan.users),
            quorum=plan.quorum,
            learning_rate=plan.learning_rate,
            deadline=datetime.now(UTC) + timedelta(seconds=plan.deadline_s),
            deadline_s=plan.deadline_s,
        )
        await self._publish(planned, cause)
        log.info(
            "planned for %d users, quorum %d", planned.users, planned.quorum, extra={"run": state.run, "round": number}
        )

    async def _publish(self, data: Payload, cause: Event | None) -> None:
        try:
            published = await self._bus.publish(data, cause=cause)
            crash_point(f"dispatcher.{data.TYPE}")
        except ConflictingEventError:
            # Another dispatcher was faster; what it said arrives through the stream and counts.
            log.info("%s was already said by another dispatcher", data.TYPE, extra={"run": data.run})
        else:
            self._own = max(self._own, published.sequence)


async def serve(bus: Bus, stop: asyncio.Event) -> None:
    """The body of the dispatcher agent."""
    await until(stop, Dispatcher(bus).serve())
