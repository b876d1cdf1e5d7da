"""The aggregator: counts a round's updates, closes it at the quorum, and publishes the model that they make."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime
from weakref import WeakSet

from agents.core.rounds.aggregation import MakeModel, RoundAggregation
from agents.core.rounds.state import Candidate
from agents.core.strategies.strategy import StrategyBrokenError
from agents.runtime.follower import Follower
from agents.runtime.model_files import local_parents, mapped_arrays, put_mapped
from agents.runtime.past import Past
from agents.runtime.round_figures import Figure, RoundFigure, Source, expose, round_figures
from agents.runtime.tasks import until
from agents.words.events import RoundPayload, RunFinished, RunStarted
from bus.client import Bus
from bus.errors import BrokerUnavailableError, FedbusError, ObjectCorruptError, ObjectMissingError, ObjectTimeoutError
from bus.process.crash_points import crash_point
from bus.words.envelope import Event, Stored
from bus.words.payload import Payload

log = logging.getLogger(__name__)
RoundKey = tuple[str, int]


class Aggregator:
    """The shell around ``RoundAggregation``.

    Its whole state is a fold over the stream: after a crash it reads the stream again, adds the accepted updates of
    the open rounds again, and goes on.
    """

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._follower = Follower(bus, "aggregator")
        self._runs: dict[str, RunStarted] = {}
        self._rounds: dict[RoundKey, RoundAggregation] = {}
        self._since: dict[RoundKey, datetime] = {}
        self._warned: WeakSet[RoundAggregation] = WeakSet()
        """The rounds of which it was said that they wait."""
        self._changed: dict[RoundKey, Event] = {}
        """The rounds that something happened in since they were decided on, each with the last of it."""

    async def serve(self) -> None:
        """Follows the stream for ever, and wakes up for deadlines."""
        await self._follower.serve(self)

    @property
    def is_live(self) -> bool:
        """Whether it knows all that there was when it started."""
        return self._follower.is_live

    def figures(self) -> list[Figure]:
        """The rounds of the runs that are not finished."""
        return round_figures(
            RoundFigure(
                run=run,
                round=number,
                since=self._since[run, number],
                closed=one.state.closed is not None,
                published=one.state.published is not None,
                failed=one.state.failed is not None,
            )
            for (run, number), one in self._rounds.items()
        )

    def begin(self, past: Past) -> None:
        """Nothing is needed of runs that are over."""

    async def take(self, stored: Stored) -> None:
        """Folds one event into its round."""
        data = stored.event.data
        if isinstance(data, RunStarted):
            self._runs.setdefault(data.run, data)
        elif isinstance(data, RunFinished):
            self._forget(data.run)
        elif isinstance(data, RoundPayload) and data.run in self._runs:
            key = (data.run, data.round)
            if key not in self._rounds:
                self._rounds[key], self._since[key] = RoundAggregation(self._runs[data.run], data.round), stored.time
            if isinstance(self._rounds[key].fold(stored), Candidate):
                crash_point("aggregator.received")
            self._changed[key] = stored.event

    def due(self) -> datetime | None:
        """The next time at which a round closes, gets more time or fails without an event."""
        times = [at for one in self._rounds.values() if (at := one.state.next_decision_at()) is not None]
        return min(times, default=None)

    async def decide(self) -> None:
        """Acts on every round that something happened in or whose time has come, until one has something to say."""
        now = datetime.now(UTC)
        for key, one in list(self._rounds.items()):
            if not self._follower.may_decide:
                return
            at = one.state.next_decision_at()
            if key in self._changed or (at is not None and at <= now):
                await self._act(one, self._changed.pop(key, None))

    def _forget(self, run: str) -> None:
        self._runs.pop(run, None)
        for key in [key for key in self._rounds if key[0] == run]:
            del self._rounds[key], self._since[key]
            self._changed.pop(key, None)

    async def _act(self, one: RoundAggregation, cause: Event | None) -> None:
        for refusal in one.refusals():
            await self._follower.say(refusal, cause=cause)
        if one.is_over:
            one.release()
            return
        await self._add(one)
        if not self._follower.may_decide:
            # What was refused comes back through the stream and counts then.
            return
        decision = one.decide(datetime.now(UTC))
        if isinstance(decision, MakeModel):
            try:
                if await self._publish_model(one, decision, cause):
                    return
            except StrategyBrokenError as error:
                log.error("%s", error.message, exc_info=error, extra=_about(one))
            decision = one.decide(datetime.now(UTC))
            crash_point("aggregator.failing")
        elif (wanting := one.waits_for) is not None and one not in self._warned:
            self._warned.add(one)
            text = "the round is closed and waits for its strategy: %s [%s] (%s)"
            log.warning(text, wanting.message, wanting.code, wanting.hint, extra=_about(one))
        if isinstance(decision, Payload):
            log.info("%s", decision.TYPE, extra=_about(one))
            crash_point("aggregator.closing")
            await self._follower.say(decision, cause=cause)

    async def _add(self, one: RoundAggregation) -> None:
        """Adds the updates that count and are not in yet; those whose bytes are wanting are refused."""
        for candidate in one.wanted():
            try:
                async with self._bus.objects.local(candidate.update.update) as data:
                    # In a thread: a large update must not keep this agent from answering.
                    await asyncio.to_thread(one.add, candidate, data)
            except (ObjectTimeoutError, BrokerUnavailableError):
                raise
            except StrategyBrokenError as error:
                log.error("%s", error.message, exc_info=error, extra=_about(one))
                return
            except FedbusError as error:
                if one.state.closed is not None:
                    # It counts for ever: there is no model without it.
                    if isinstance(error, ObjectMissingError | ObjectCorruptError):
                        self._lost(one, error)
                        return
                    raise
                log.info("update of %s refused: %s", candidate.update.user, error.message, extra=_about(one))
                await self._follower.say(one.refusal_of(candidate, error), cause=None)
            else:
                crash_point("aggregator.added")

    def _lost(self, one: RoundAggregation, error: ObjectMissingError | ObjectCorruptError) -> None:
        log.error("%s [%s]", error.message, error.code, extra=_about(one))
        one.lost(error)

    async def _publish_model(self, one: RoundAggregation, intent: MakeModel, cause: Event | None) -> bool:
        """Says the round's model; false where what it is made from is lost."""
        objects, model, state = self._bus.objects, intent.plan.base_model, intent.plan.server_state
        with mapped_arrays() as new:
            try:
                async with local_parents(objects, intent.plan) as (parent, before):
                    made = await asyncio.to_thread(one.made, parent, before, new)
            except (ObjectMissingError, ObjectCorruptError) as error:
                self._lost(one, error)
                return False
            if made is not None:
                model = await put_mapped(objects, made.model, model.media_type)
                crash_point("aggregator.model_put")
                kept = made.server_state
                state = await put_mapped(objects, kept, "application/octet-stream") if kept is not None else None
        crash_point("aggregator.state_put")
        published = one.published(model, state)
        await self._follower.say(published, cause=cause)
        log.info("model %s from %d updates", model.sha256[:12], published.updates, extra=_about(one))
        return True


def _about(one: RoundAggregation) -> dict[str, object]:
    """What a log line about this round says beside its message."""
    return {"run": one.state.run, "round": one.state.round}


async def serve(bus: Bus, stop: asyncio.Event) -> None:
    """The body of the aggregator agent."""
    aggregator = Aggregator(bus)
    # Before anything is waited for: an agent of which nothing is known yet is not ready.
    expose(Source(aggregator.figures, lambda: aggregator.is_live))
    await until(stop, aggregator.serve())
