"""Write-once publishing: the broker takes an event if its subject is still empty; otherwise the first one counts."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

import nats.errors
from nats.js.errors import APIError

from bus.broker.answers import WRONG_LAST_SEQUENCE
from bus.broker.connection import Connection
from bus.broker.direct_get import lies_copied, read_stored
from bus.broker.pipelining import Ack, Pipeline
from bus.broker.topology import MAX_EVENT_BYTES
from bus.errors import ConflictingEventError, MalformedEventError
from bus.process.crash_points import crash_point
from bus.words.envelope import Event, Stored, parse_event
from bus.words.subjects import EVENT_STREAM, event_subject

WINDOW = 256
ANSWER_S = 10.0
_BATCH = 16


@dataclass(frozen=True)
class Published:
    """What publishing came to: the event that counts, its place in the stream, and whether it is the caller's own.

    ``created`` is false when an equal event had been there before.
    """

    sequence: int
    event: Event
    created: bool


@dataclass(frozen=True)
class _Outgoing:
    event: Event
    subject: str
    body: bytes


class Publisher:
    """Publishes events; ``published``, ``repeated`` and ``conflicts`` count what it came to."""

    def __init__(self, connection: Connection, pipeline: Pipeline) -> None:
        self._connection = connection
        self._pipeline = pipeline
        self.published = 0
        self.repeated = 0
        self.conflicts = 0

    async def publish(self, event: Event) -> Published:
        """Writes ``event`` once, waiting out broker outages.

        Raises:
            PermissionDeniedError: the broker does not let this user say this.
            ConflictingEventError: another event with other data is there already.
            MalformedEventError: the event is larger than the stream takes.
        """
        return await self._settle(_outgoing(event))

    async def publish_many(self, events: Sequence[Event]) -> list[Published]:
        """Writes all events, many at once; raises the first conflict after all the others have been written."""
        outgoing = [_outgoing(event) for event in events]
        results: list[Published] = []
        conflict: ConflictingEventError | None = None
        for start in range(0, len(outgoing), WINDOW):
            if start:
                crash_point("publisher.between_windows")
            window = outgoing[start : start + WINDOW]
            for item, ack in zip(window, await self._attempt(window), strict=True):
                if ack is not None and not ack.duplicate:
                    self.published += 1
                    results.append(Published(ack.sequence, item.event, created=True))
                    continue
                try:
                    results.append(await self._settle(item))
                except ConflictingEventError as error:
                    conflict = conflict or error
        if conflict is not None:
            raise conflict
        return results

    async def _attempt(self, window: Sequence[_Outgoing]) -> list[Ack | None]:
        """The acknowledgements that came in time, in order; nothing where an event needs a closer look."""

        await self._connection.connected()
        futures = [await self._pipeline.send(item.subject, item.body, _once(item.event, 0)) for item in window]
        try:
            await asyncio.wait(futures, timeout=ANSWER_S)
        finally:
            self._pipeline.forget(futures)
        return [None if one.cancelled() or one.exception() is not None else one.result() for one in futures]

    async def _settle(self, item: _Outgoing) -> Published:
        expected = 0
        while True:
            try:
                ack = await self._write(item, expected)
                self.published += 1
                return Published(ack.sequence, item.event, created=True)
            except APIError as error:
                if error.err_code != WRONG_LAST_SEQUENCE:
                    raise
            existing, expected = await find_event(self._connection, item.subject)
            # Where nobody can read what is there, the first event that can be read takes its place.
            if existing is not None:
                return self._compare(item, existing.event, existing.sequence)

    def _compare(self, item: _Outgoing, existing: Event, sequence: int) -> Published:
        if existing.id == item.event.id:
            # Ours: the broker took it and its answer was lost.
            self.published += 1
            return Published(sequence, existing, created=True)
        if existing.data == item.event.data:
            self.repeated += 1
            return Published(sequence, existing, created=False)
        self.conflicts += 1
        raise ConflictingEventError(
            f"{item.subject} says something else already (sequence {sequence})",
            hint="read the event that is there; the first one counts",
        )

    async def _write(self, item: _Outgoing, expected: int) -> Ack:
        async def attempt() -> Ack:
            future = await self._pipeline.send(item.subject, item.body, _once(item.event, expected))
            try:
                await asyncio.wait([future], timeout=ANSWER_S)
            finally:
                self._pipeline.forget([future])
            if future.cancelled():
                raise nats.errors.TimeoutError
            return future.result()

        return await self._connection.persist(attempt)


async def find_event(connection: Connection, subject: str) -> tuple[Stored | None, int]:
    """The first event on ``subject``, which is the one that counts, and the sequence of the last message there, 0
    without any.

    What cannot be read, or what the broker copied there, is no event, and hides none that came before it or after.
    """
    last = await connection.last_message(EVENT_STREAM, subject)
    if last is None:
        return None, 0
    assert last.seq is not None
    stored = read_stored(connection, EVENT_STREAM, subject, start=1, batch=_BATCH, stall_s=ANSWER_S)
    async with contextlib.aclosing(stored) as messages:
        async for message in messages:
            event = parsed(message.data, subject)
            if event is not None and not await lies_copied(connection, EVENT_STREAM, message.sequence):
                return Stored(message.sequence, message.time, event), last.seq
    return None, last.seq


def parsed(body: bytes, subject: str) -> Event | None:
    """The event in a stored message; nothing when it cannot be read or does not belong on its subject."""
    try:
        event = parse_event(body)
    except MalformedEventError:
        return None
    return event if event_subject(event.data) == subject else None


def _outgoing(event: Event) -> _Outgoing:
    body = event.to_json()
    if len(body) > MAX_EVENT_BYTES - 1024:
        raise MalformedEventError(
            f"{event.type} is {len(body)} bytes long, the limit is {MAX_EVENT_BYTES - 1024}",
            hint="put what is large into the object store and its reference into the event",
        )
    return _Outgoing(event, event_subject(event.data), body)


def _once(event: Event, expected: int) -> dict[str, str]:
    """Headers of a compare-and-set; a new dict each time, because the client changes what it is given."""
    return {"Nats-Expected-Last-Subject-Sequence": str(expected), "Nats-Msg-Id": event.id}
