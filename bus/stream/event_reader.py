"""Reads the event stream in order, without gap or duplicate, across lost connections and broker restarts."""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass

import nats.errors
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy, RawStreamMsg
from nats.js.errors import NotFoundError

from bus.broker.connection import Connection
from bus.broker.direct_get import lost_sequences, stream_state, was_copied
from bus.errors import MalformedEventError
from bus.stream.dead_letters import bury
from bus.stream.publisher import parsed
from bus.stream.pull_reader import ConsumerGone, Place, PullReader, place_of
from bus.words.envelope import Stored, parse_event
from bus.words.subjects import EVENT_STREAM, EVENTS, event_subject, matches

BATCH = 512
INACTIVE_S = 60.0
"""The broker drops a reader's consumer when nothing was asked of it for this long: no agent may delete consumers."""
MAX_RECOVERED = 1_000
"""Events that are asked for one by one."""
IDLE_S = 3.0
"""Without an event for so long, the leader of the stream is asked whether there is none."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CaughtUp:
    """Everything that was in the stream when the reader started has been read, up to ``sequence``."""

    sequence: int


def read_event(message: Msg, place: Place) -> Stored:
    """The event in a message of the event stream.

    Raises:
        MalformedEventError: it is not an event, or one that does not belong on the subject that it came on.
    """
    if was_copied(message):
        raise MalformedEventError("the broker copied it here as an answer to somebody's request")
    event = parse_event(message.data)
    if event_subject(event.data) != message.subject:
        raise MalformedEventError(f"an event of {event_subject(event.data)} on {message.subject}")
    return Stored(place.sequence, place.time, event)


class EventReader:
    """The iterator of ``Bus.follow``.

    Attributes:
        skipped: how many malformed messages went to the DLQ.
        missing: the sequences that no broker can serve, because its store is damaged. Nothing ever leaves the stream,
            so whoever reads all of it sees each. A reader of a part names each that may have been one of its own.
    """

    def __init__(self, connection: Connection, filters: tuple[str, ...], *, after: int, live: bool) -> None:
        self._connection = connection
        self._filters = filters
        self._live = live
        self._last = after
        self._caught_up = False
        self._target: int | None = None
        self._expected = 1
        self._ready: deque[Msg] = deque()
        self._reader: PullReader | None = None
        self._open = contextlib.AsyncExitStack()
        self._idle_at = -1
        self._after = after
        self._due = 0
        self._recovered: deque[Stored] = deque()
        self.skipped = 0
        self.missing: list[int] = []

    def __aiter__(self) -> AsyncIterator[Stored | CaughtUp]:
        return self

    async def __anext__(self) -> Stored | CaughtUp:
        while True:
            if self._reader is None:
                await self._start()
            if self._recovered:
                return self._recovered.popleft()
            if not self._caught_up and self._target is not None and self._last >= self._target:
                await self._look_for_gaps()
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
        if self._filters == (EVENTS,) and place.sequence > self._last + 1:
            await self._recover(place.sequence)
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
        self._due = place.pending
        return stored

    async def _fill(self) -> None:
        assert self._reader is not None
        try:
            await self._reader.ask(BATCH)
        except (ConsumerGone, nats.errors.Error):
            await self.close()
            return
        found = await self._reader.take(BATCH, timeout_s=IDLE_S)
        self._ready.extend(found)
        if not found:
            await self._look_for_more()

    async def _look_for_more(self) -> None:
        """After a while without an event: sees whether there is none, or the consumer does not know or have it."""
        newest = await self._newest()
        if self._reader is None or self._reader.buffered:
            return
        if newest <= self._last:
            if self._target is not None:
                # What was taken for one of its own at the start is not.
                self._target = min(self._target, self._last)
            await self._look_for_gaps(newest)
            return
        if self._idle_at != self._last:
            # The broker that has the consumer is behind, and may be cut off: another consumer may know more.
            self._idle_at = self._last
            await self.close()
            return
        await self._recover(newest + 1)

    async def _look_for_gaps(self, newest: int | None = None) -> None:
        """Where a consumer still owes events and there are none: the lost ones lie in the middle, for it passes over
        what it cannot read and does not count that as brought. Only whoever reads the whole stream finds them.
        """
        if self._due and self._filters != (EVENTS,) and (newest or await self._newest()) <= self._last:
            self._due = 0
            whole = EventReader(self._connection, (EVENTS,), after=self._after, live=False)
            try:
                async for _ in whole:
                    pass
            finally:
                await whole.close()
            for sequence in whole.missing:
                self._name(sequence)

    async def _recover(self, end: int) -> None:
        """Asks the leader for what a consumer did not bring before sequence ``end``, and names what nobody has."""
        if end - self._last - 1 > MAX_RECOVERED:
            log.error("events %d to %d of the stream are missing", self._last + 1, end - MAX_RECOVERED - 1)
            self._last = end - MAX_RECOVERED - 1
        while self._last < end - 1:
            sequence = self._last + 1
            found = await self._at_leader(sequence)
            if found is None:
                self._name(sequence)
            elif found.subject and found.time and any(matches(one, found.subject) for one in self._filters):
                event = None if was_copied(found) else parsed(found.data or b"", found.subject)
                self._recovered += [Stored(sequence, found.time, event)] if event else []
            self._last = sequence

    def _name(self, sequence: int) -> None:
        """Says, once on each connection, that an event is lost."""
        if sequence not in self.missing:
            self.missing.append(sequence)
        if sequence not in self._connection.unreadable:
            self._connection.unreadable.add(sequence)
            log.error("event %d of the stream cannot be read: the broker's store is damaged", sequence)

    async def _at_leader(self, sequence: int) -> RawStreamMsg | None:
        async def attempt() -> RawStreamMsg:
            return await self._connection.js.get_msg(EVENT_STREAM, sequence)

        try:
            return await self._connection.persist(attempt)
        except NotFoundError:
            return None

    async def _newest(self) -> int:
        """The sequence of the newest event that is asked for, from the leader of the stream.

        A consumer lives where a replica is behind, perhaps, and does not know what it lacks.
        """
        if self._filters == (EVENTS,):
            # There is nothing else in the stream, and the number of what cannot be read is known all the same.
            return (
                await self._connection.persist(lambda: self._connection.js.stream_info(EVENT_STREAM))
            ).state.last_seq
        found = 0
        for one in self._filters:
            last = await self._connection.last_message(EVENT_STREAM, one)
            if last is None and (await stream_state(self._connection, EVENT_STREAM, one)).subjects:
                # There is one: it came between the two questions, or cannot be read.
                last = await self._connection.last_message(EVENT_STREAM, one)
                if last is None:
                    found = max(found, await self._last_sequence())
            if last is not None:
                found = max(found, last.seq or 0)
        return found

    async def _last_sequence(self) -> int:
        info = await self._connection.persist(lambda: self._connection.js.stream_info(EVENT_STREAM))
        return info.state.last_seq

    async def _start(self) -> None:
        """Makes a consumer of its own that begins after the last event that was read."""
        if self._target is None:
            self._target = await self._newest()
            if self._filters != (EVENTS,):
                lost = await lost_sequences(self._connection, EVENT_STREAM)
                for sequence in [one for one in lost if one > self._last][:MAX_RECOVERED]:
                    self._name(sequence)
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
            await self._connection.persist(lambda: self._connection.js.add_consumer(EVENT_STREAM, config))
            reader = PullReader(self._connection, EVENT_STREAM, name)
            self._reader = await opening.enter_async_context(reader.listening())
            self._open = opening.pop_all()
        self._expected = 1
        self._ready.clear()

    async def close(self) -> None:
        """Drops the consumer; the next read makes another that goes on after the last event."""
        self._reader = None
        self._ready.clear()
        await self._open.aclose()
