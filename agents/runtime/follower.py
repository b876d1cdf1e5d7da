"""Follows the stream for an agent that decides from it: what it reads, when it may decide, and what it says.

Such an agent keeps nothing that the stream does not have, and needs nothing of runs that are over. It must not decide
before it has read all that there was of the others when it started, nor while words of its own are still on their way
back to it: it would say them again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from typing import Protocol

from agents.runtime.past import Past, read_past
from agents.runtime.tasks import background
from bus.client import Bus, CaughtUp
from bus.errors import ConflictingEventError
from bus.process.crash_points import crash_point
from bus.words.envelope import Event, Stored
from bus.words.payload import Payload
from bus.words.subjects import EVENTS, event_subject

CAPACITY = 256
"""Events that are read ahead of the one that is being taken."""
PAUSE_S = 0.25
"""Until a decision whose time is past is asked for again, although nothing came."""
log = logging.getLogger(__name__)


class Decider(Protocol):
    """What an agent makes of the stream."""

    def begin(self, past: Past) -> None:
        """Called once, before the first event: what is known of the runs that are over."""

    async def take(self, stored: Stored) -> None:
        """Takes one event in; decides nothing yet."""

    async def decide(self) -> None:
        """Says what has to be said now; called after every event once the agent may decide, and when it is ``due``."""

    def due(self) -> datetime | None:
        """When ``decide`` may have something to say although no event comes; none where only events can bring it."""


class Follower:
    """Reads the stream for a ``Decider`` and says its words.

    Args:
        agent: the name that its crash points begin with.
    """

    def __init__(self, bus: Bus, agent: str) -> None:
        self._bus = bus
        self._agent = agent
        self._read = 0
        self._said = 0
        self.is_live = False
        """Whether everything has been read that the stream had of open runs at the start."""

    @property
    def may_decide(self) -> bool:
        """Whether the agent knows all that was there when it started, and all that it has said since."""
        return self.is_live and self._read >= self._said

    async def serve(self, decider: Decider) -> None:
        """Follows the stream for ever, from the first event of the oldest run that is open."""
        past = await read_past(self._bus)
        decider.begin(past)
        async with self._bus.follow(EVENTS, after=past.after) as items:
            waiting: asyncio.Queue[Stored | CaughtUp] = asyncio.Queue(CAPACITY)
            async with background(_pump(items, waiting)):
                while True:
                    item = await _next_or_tick(waiting, decider.due() if self.may_decide else None)
                    if isinstance(item, Stored):
                        await decider.take(item)
                        self._read = item.sequence
                    elif isinstance(item, CaughtUp):
                        self.is_live = True
                    if self.may_decide:
                        await decider.decide()

    async def say(self, data: Payload, *, cause: Event | None) -> None:
        """Publishes ``data``; where another instance said something else there first, that is what counts."""
        try:
            self._said = max(self._said, (await self._bus.publish(data, cause=cause)).sequence)
            crash_point(f"{self._agent}.{data.TYPE}")
        except ConflictingEventError:
            log.info("%s was already said by another %s", data.TYPE, self._agent, extra={"run": data.run})
            if (first := await self._bus.find(event_subject(data))) is not None:
                self._said = max(self._said, first.sequence)

    async def say_all(self, payloads: Sequence[Payload], *, cause: Event | None) -> None:
        """As ``say`` for each of them, much faster; all are of one type."""
        try:
            published = await self._bus.publish_many(payloads, cause=cause)
        except ConflictingEventError:
            for data in payloads:
                await self.say(data, cause=cause)
        else:
            self._said = max(self._said, *(one.sequence for one in published))
            crash_point(f"{self._agent}.{payloads[0].TYPE}")


async def _pump(items: AsyncIterator[Stored | CaughtUp], waiting: asyncio.Queue[Stored | CaughtUp]) -> None:
    async for item in items:
        await waiting.put(item)


async def _next_or_tick(waiting: asyncio.Queue[Stored | CaughtUp], at: datetime | None) -> Stored | CaughtUp | None:
    """The next item, or nothing once the clock passes ``at`` (never, without one)."""
    if at is None:
        return await waiting.get()
    wait_s = (at - datetime.now(UTC)).total_seconds()
    try:
        # A time that is past was decided on, in vain: the clock alone must not ask again at once.
        async with asyncio.timeout(wait_s if wait_s > 0 else PAUSE_S):
            return await waiting.get()
    except TimeoutError:
        return None
