"""The dispatcher: plans rounds, assigns their tasks, starts the next round and ends the run."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime

from agents.core.rounds.intents import AssignTasks, PlanRound, ReadDataset, Say
from agents.core.rounds.plan import RunState, over, task_spec, unknown
from agents.core.rounds.settling import Settling
from agents.runtime.follower import Follower
from agents.runtime.past import Past
from agents.runtime.round_figures import Figure, RoundFigure, Source, expose, round_figures
from agents.runtime.tasks import until
from agents.words.events import RoundStarted, RunFinished, RunsSettled, RunStarted
from bus.client import Bus
from bus.errors import ObjectCorruptError, ObjectMissingError, PermissionDeniedError
from bus.process.crash_points import crash_point
from bus.words.envelope import Event, Stored
from bus.words.subjects import events_of, events_of_type

log = logging.getLogger(__name__)


class Dispatcher:
    """The shell around ``RunState``: feeds it the stream and does what it decides."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._follower = Follower(bus, "dispatcher")
        self._runs: dict[str, RunState] = {}
        self._settling = Settling()
        self._over: dict[str, str] = {}
        """Of each run that is finished, how it ended."""
        self._refused: list[tuple[Stored, str]] = []
        """The rounds that somebody asked for in vain, with the reason; until they are dead letters."""
        self._orphans: dict[str, Event] = {}
        """Runs whose start is not in the stream, behind a gap, each with its first event; until they are failed."""
        self._lost: tuple[int, ...] = ()
        """The gaps in the stream for which every open run has been looked through."""
        self._newest: dict[str, Event] = {}
        """Of each open run, the last event."""
        self._changed: dict[str, Event] = {}
        """The runs that something happened in since they were decided on, each with the last of it."""

    async def serve(self) -> None:
        """Follows the stream for ever; decides only once it has read all that there is."""
        await self._follower.serve(self)

    @property
    def is_live(self) -> bool:
        """Whether it knows all that there was when it started."""
        return self._follower.is_live

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

    def begin(self, past: Past) -> None:
        """Counts what has ended since somebody last said what is open."""
        self._settling = Settling(past.runs)

    async def take(self, stored: Stored) -> None:
        """Folds one event into its run."""
        data = stored.event.data
        self._settling.fold(stored)
        if isinstance(data, RunStarted) and data.run not in self._runs:
            self._runs[data.run] = RunState(data)
        state = self._runs.get(data.run)
        if isinstance(data, RoundStarted) and (reason := self._why_not(data, state)) is not None:
            self._refused.append((stored, reason))
        if state is None:
            gap = any(lost < stored.sequence for lost in self._bus.unreadable)
            if gap and data.run not in self._over and not isinstance(data, RoundStarted | RunFinished | RunsSettled):
                self._orphans.setdefault(data.run, stored.event)
            return
        state.fold(stored)
        self._changed[data.run] = self._newest[data.run] = stored.event
        if isinstance(data, RunFinished):
            del self._runs[data.run], self._changed[data.run], self._newest[data.run]
            self._over[data.run] = over(data.run, data)
            log.info("run %s", data.status, extra={"run": data.run})

    def _why_not(self, asked: RoundStarted, state: RunState | None) -> str | None:
        if state is not None:
            return state.why_not(asked.round)
        return self._over.get(asked.run, "")

    async def _why_unknown(self, run: str) -> str:
        """Why a round cannot be started of a run that was over, or was not, when this agent began."""
        ended = await self._bus.find(events_of_type(RunFinished.TYPE, run))
        return over(run, ended.event.data) if ended and isinstance(ended.event.data, RunFinished) else unknown(run)

    def due(self) -> datetime | None:
        """Never: only events bring it something to do."""
        return None

    async def decide(self) -> None:
        """Does what each run asks for that something happened in; the events that come of it bring the next."""
        refused, self._refused = self._refused, []
        for stored, found in refused:
            reason = found or await self._why_unknown(stored.event.data.run)
            # After a restart they are there already, and stay as they are.
            if await self._bus.give_up(stored, reason, by="dispatcher"):
                log.warning("round not started: %s", reason, extra={"run": stored.event.data.run})
        if self._lost != self._bus.unreadable:
            await self._look_for_losses()
        await self._settle()
        changed, self._changed = self._changed, {}
        for run, cause in changed.items():
            await self._act(self._runs[run], cause)

    async def _settle(self) -> None:
        """Says what is open, if it is time, and this agent can know it: a lost event may have been a run's start."""
        due, self._settling.due = self._settling.due, None
        if due is None or self._bus.unreadable:
            return
        try:
            await self._follower.say(due, cause=None)
            log.info("%d runs are open", len(due.open), extra={"run": due.run})
        except PermissionDeniedError as error:
            # A broker with the permissions of an earlier version: starting takes longer, and nothing else.
            log.warning("%s: agents will take longer to start (%s)", error.message, error.hint)

    async def _look_for_losses(self) -> None:
        """Sees which runs lost an event with the broker's store: they cannot go on, and end with that reason."""
        lost = self._bus.unreadable
        numbers = ", ".join(map(str, lost[:10]))
        for run, state in self._runs.items():
            if subjects := await self._bus.unreadable_subjects(events_of(run)):
                state.problem = f"the broker's store is damaged: {subjects[0]} cannot be read (lost events: {numbers})"
                self._changed.setdefault(run, self._newest[run])
        orphans, self._orphans = self._orphans, {}
        for run, cause in orphans.items():
            if await self._bus.find(events_of_type(RunFinished.TYPE, run)) is None:
                reason = f"the broker's store is damaged: the start of the run cannot be read (lost events: {numbers})"
                await self._follower.say(RunFinished(run=run, status="failed", reason=reason, rounds=0), cause=cause)
        self._lost = lost

    async def _act(self, state: RunState, cause: Event) -> None:
        intent = state.decide()
        if isinstance(intent, ReadDataset):
            await self._open(state, intent)
            intent = state.decide()
        match intent:
            case Say(data):
                await self._follower.say(data, cause=cause)
            case AssignTasks(tasks):
                await self._follower.say_all(tasks, cause=cause)
                log.info("assigned %d tasks", len(tasks), extra={"run": state.run, "round": tasks[0].round})
            case PlanRound():
                try:
                    await self._plan(state.started, intent, cause)
                except (ObjectMissingError, ObjectCorruptError) as error:
                    await self._follower.say(intent.failed(str(error)), cause=cause)

    async def _open(self, state: RunState, intent: ReadDataset) -> None:
        try:
            state.open(await self._bus.objects.get(intent.dataset))
        except (ObjectMissingError, ObjectCorruptError) as error:
            state.problem = f"dataset: {error}"

    async def _plan(self, started: RunStarted, plan: PlanRound, cause: Event) -> None:
        crash_point("dispatcher.planning")
        base = plan.base_model
        if (found := await self._bus.objects.info(base.name)) is None:
            raise ObjectMissingError(f"base model {base.name} is not in the object store")
        if found.size != base.size:
            raise ObjectCorruptError(f"base model {base.name} has {found.size} bytes, its reference says {base.size}")
        spec = task_spec(started, plan)
        ref = await self._bus.objects.put(spec.model_dump_json().encode(), media_type="application/json")
        crash_point("dispatcher.spec_put")
        planned = plan.planned(ref, datetime.now(UTC))
        await self._follower.say(planned, cause=cause)
        log.info(
            "planned for %d users, quorum %d",
            planned.users,
            planned.quorum,
            extra={"run": planned.run, "round": planned.round},
        )


async def serve(bus: Bus, stop: asyncio.Event) -> None:
    """The body of the dispatcher agent."""
    dispatcher = Dispatcher(bus)
    # Before anything is waited for: an agent of which nothing is known yet is not ready.
    expose(Source(dispatcher.figures, lambda: dispatcher.is_live))
    await until(stop, dispatcher.serve())
