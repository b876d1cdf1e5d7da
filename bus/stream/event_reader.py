"""Reads the event stream in order, without gap or duplicate, across lost connections and broker restarts."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass

import nats.errors
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from bus.broker.connection import Connection
from bus.broker.direct_get import COPIED
from bus.errors import MalformedEventError
from bus.stream.dead_letters import bury
from bus.stream.pull_reader import EXPIRES_S, ConsumerGone, Place, PullReader, place_of
from bus.words.envelope import Stored, parse_event
from bus.words.subjects import EVENT_STREAM, event_subject

BATCH = 512
INACTIVE_S = 60.0
"""The broker drops a reader's consumer when nothing was asked of it for this long: no agent may delete consumers."""


@dataclass(frozen=True)
class CaughtUp:
    """Everything that was in the stream when the reader started has been read, up to ``sequence``."""

    sequence: int


def read_event(message: Msg, place: Place) -> Stored:
    """The event in a message of the event stream.

    Raises:
        MalformedEventError: it is not an event, or one that does not belong on the subject that it came on.
    """
    if COPIED in (message.headers or {}):
        raise MalformedEventError("the broker copied it here as an answer to somebody's request")
    event = parse_event(message.data)
    if event_subject(event.data) != message.subject:
        raise MalformedEventError(f"an event of {event_subject(event.data)} on {message.subject}")
    return Stored(place.sequence, place.time, event)


class EventReader:
    """The iterator of ``Bus.follow``; ``skipped`` counts the malformed messages that went to the DLQ."""

    def __init__(self, connection: Connection, filters: tuple[str, ...], *, after: int, live: bool) -> None:
        self._connection = connection
        self._filters = filters
        self._live = live
        self._last = after
        self._caught_up = False
        self._unread_at_start = 0
        self._expected = 1
        self._ready: deque[Msg] = deque()
        self._reader: PullReader | None = None
        self._open = contextlib.AsyncExitStack()
        self.skipped = 0

    def __aiter__(self) -> AsyncIterator[Stored | CaughtUp]:
        return self

    async def __anext__(self) -> Stored | CaughtUp:
        while True:
            if self._reader is None:
                await self._start()
            if self._unread_at_start <= 0 and not self._caught_up:
                self._caught_up = True
                return CaughtUp(self._last)
            if self._caught_up and not self._live:
                raise StopAsyncIteration
            if not self._ready:
                await self._fill()
            elif (stored := await self._next()) is not None:
                return stored

    async def _next(self) -> Stored | None:
        """The event in the next message; nothing when it is malformed or shows that messages were lost."""
        message = self._ready[0]
        place = place_of(message)
        if place.consumer_sequence != self._expected:
            await self.close()
            return None
        try:
            stored = read_event(message, place)
        except MalformedEventError as error:
            self.skipped += await bury(self._connection, place.sequence, message.subject, error.message, message.data)
            stored = None
        # Only now: a cancelled call leaves the message where it was.
        self._ready.popleft()
        self._last = place.sequence
        self._expected += 1
        self._unread_at_start -= 1
        return stored

    async def _fill(self) -> None:
        assert self._reader is not None
        try:
            await self._reader.ask(BATCH)
        except (ConsumerGone, nats.errors.Error):
            await self.close()
            return
        self._ready.extend(await self._reader.take(BATCH, timeout_s=EXPIRES_S))

    async def _start(self) -> None:
        """Makes a consumer of its own that begins after the last event that was read."""
        name = f"follow-{self._connection.nc.new_inbox().rsplit('.', 1)[1]}"
        config = ConsumerConfig(
            name=name,
            deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
            opt_start_seq=self._last + 1,
            ack_policy=AckPolicy.NONE,
            filter_subjects=list(self._filters),
            inactive_threshold=INACTIVE_S,
            mem_storage=True,
            num_replicas=1,
        )
        async with contextlib.AsyncExitStack() as opening:
            info = await self._connection.persist(lambda: self._connection.js.add_consumer(EVENT_STREAM, config))
            reader = PullReader(self._connection, EVENT_STREAM, name)
            self._reader = await opening.enter_async_context(reader.listening())
            self._open = opening.pop_all()
        self._expected = 1
        self._ready.clear()
        if not self._caught_up:
            self._unread_at_start = info.num_pending or 0

    async def close(self) -> None:
        """Drops the consumer; the next read makes another that goes on after the last event."""
        self._reader = None
        self._ready.clear()
        await self._open.aclose()
