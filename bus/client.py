"""The bus as every agent sees it: publish facts once, follow the stream, say what goes on, reach the objects."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from bus.broker.connection import Connection, connection
from bus.broker.direct_get import stream_state, was_copied
from bus.broker.pipelining import Pipeline
from bus.broker.settings import BusSettings
from bus.broker.tokens import TokenStore
from bus.broker.topology import ensure_topology
from bus.errors import PermissionDeniedError
from bus.objects.collection import collect
from bus.objects.store import ObjectStore
from bus.stream.dead_letters import DeadLetter, bury
from bus.stream.event_reader import CaughtUp, EventReader
from bus.stream.letter_list import dead_letters, ends_of_dead_letters
from bus.stream.live_reader import LiveReader
from bus.stream.publisher import Published, Publisher, find_event, parsed
from bus.words.envelope import Event, Stored, new_event
from bus.words.payload import Live, Payload
from bus.words.subjects import EVENT_STREAM, event_subject, filter_of, live_subject
from bus.words.values import Ref
from bus.work.backlogs import Measured, measure
from bus.work.consumer import PullConsumer, pull_consumer
from bus.work.retries import Retry, retry

__all__ = ["Bus", "BusStatistics", "CaughtUp", "Published"]
STREAMS_PAUSE_S = 2.0
L = TypeVar("L", bound=Live)
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BusStatistics:
    """What one connection did so far.

    ``repeated`` are events that had been said before, ``losses`` lost connections, ``retries`` requests made again,
    ``unsaid`` live messages that were not sent because the broker was away.
    """

    connected: bool
    published: int
    repeated: int
    conflicts: int
    losses: int
    retries: int
    unsaid: int
    bytes_in: int
    bytes_out: int


class Bus:
    """One agent's connection; make it with ``Bus.connect``.

    Attributes:
        objects: the object store.
        tokens: the join tokens.
        consumers: the durable consumers that are being pulled now.
        connection, pipeline: what all of this stands on; for whatever has to say to the broker what a bus does not.
    """

    def __init__(self, link: Connection, name: str) -> None:
        self.connection = link
        self._source = f"fedbus/{name}/{os.getpid()}"
        self.pipeline = Pipeline(link)
        self._publisher = Publisher(link, self.pipeline)
        self._unsaid = 0
        self.consumers: set[PullConsumer] = set()
        self.objects = ObjectStore(link, self.pipeline)
        self.tokens = TokenStore(link)

    @staticmethod
    @contextlib.asynccontextmanager
    async def connect(
        settings: BusSettings | None = None,
        *,
        name: str,
        wait_s: float | None = None,
        on_waiting: Callable[[str], object] | None = None,
    ) -> AsyncIterator[Bus]:
        """A connected bus whose streams exist; flushed and closed at the end.

        Waits for the broker for ever, or ``wait_s`` seconds, and calls ``on_waiting`` with a line that says why at
        first and then every ten seconds. A connection that is lost later comes back by itself.

        Raises:
            BrokerUnavailableError: no broker in time, or it refuses these credentials.
        """
        settings = settings or BusSettings()
        async with connection(settings, name=name, wait_s=wait_s, on_waiting=on_waiting) as link:
            await _prepared(link, settings.replicas)
            yield Bus(link, name)

    async def publish(self, data: Payload, *, cause: Event | None = None) -> Published:
        """Says ``data`` once: the first event on a subject counts.

        An equal event that is there already comes back with ``created`` false; one that nobody can read is replaced.
        Waits while the broker is away.

        Raises:
            ConflictingEventError: the event is there already and says something else.
            MalformedEventError: the event is larger than the stream takes.
        """
        return await self._publisher.publish(new_event(data, source=self._source, cause=cause))

    async def publish_many(self, payloads: Iterable[Payload], *, cause: Event | None = None) -> list[Published]:
        """Like ``publish`` for each, in order and much faster; raises the first conflict after all are written."""
        return await self._publisher.publish_many(
            [new_event(data, source=self._source, cause=cause) for data in payloads]
        )

    async def find(self, subject: str) -> Stored | None:
        """The first event on ``subject`` that can be read: the one that counts; nothing when there is none."""
        return (await find_event(self.connection, subject))[0]

    async def newest(self, filter: str) -> Stored | None:
        """The newest message that matches ``filter``, from the stream's leader, if it is an event that can be read."""
        last = await self.connection.last_message(EVENT_STREAM, filter)
        if last is None or last.subject is None or last.seq is None or last.time is None or was_copied(last):
            return None
        event = parsed(last.data or b"", last.subject)
        return None if event is None else Stored(last.seq, last.time, event)

    async def give_up(self, stored: Stored, reason: str, *, by: str) -> bool:
        """Makes an event that ``by`` cannot do anything with a dead letter, once; false when it is one already."""
        event = stored.event
        return await bury(
            self.connection, stored.sequence, event_subject(event.data), reason, event.to_json(), consumer=by
        )

    async def dead_letters(self) -> list[DeadLetter]:
        """Every message that was given up and not handled since, oldest first."""
        return await dead_letters(self.connection)

    async def ends_of_dead_letters(self, first: int, newest: int) -> tuple[list[DeadLetter], int]:
        """So many of the oldest and of the newest dead letters, oldest first, and the number of all."""
        return await ends_of_dead_letters(self.connection, first, newest)

    async def retry(self, letter: DeadLetter) -> Retry:
        """Gives a dead letter back to the workers that gave it up; safe to repeat. It stays one until it is handled.

        Raises:
            LetterMalformedError: the event cannot be understood, or is not in the stream any more.
            LetterUnclaimedError: no worker takes it.
        """
        return await retry(self.connection, letter)

    def expired_objects(self, older_than_s: float, *, dry_run: bool = False) -> AsyncGenerator[Ref, None]:
        """Deletes the objects that no event leads to and nobody has put for this long, and says which they were.

        Choose an age well above the longest time between putting an object and saying the event that names it, broker
        outages included. With ``dry_run`` nothing is deleted.

        Raises:
            ObjectCorruptError, ObjectTimeoutError: a document that events need cannot be read; nothing more is deleted.
        """
        return collect(self.connection, self.objects, older_than_s, dry_run=dry_run)

    @property
    def unreadable(self) -> tuple[int, ...]:
        """The sequences of events that a reader of this bus found no broker to have: its store is damaged."""
        return tuple(sorted(self.connection.unreadable))

    async def unreadable_subjects(self, filter: str) -> list[str]:
        """The subjects that match ``filter`` and whose event the broker knows of and cannot read, sorted.

        A broker that lost an event together with its index does not know of it any more.
        """
        async with self.follow(filter, live=False) as items:
            read = {event_subject(one.event.data) async for one in items if isinstance(one, Stored)}
        known = (await stream_state(self.connection, EVENT_STREAM, filter)).subjects
        # What is malformed was not read either.
        suspected = sorted(known.keys() - read)
        return [one for one in suspected if await self.connection.last_message(EVENT_STREAM, one) is None]

    async def last_sequence(self) -> int:
        """The sequence of the newest event of all runs; 0 before the first."""
        info = await self.connection.persist(lambda: self.connection.js.stream_info(EVENT_STREAM))
        return info.state.last_seq

    @contextlib.asynccontextmanager
    async def follow(
        self, filter: str | Sequence[str], *, after: int = 0, live: bool = True
    ) -> AsyncIterator[AsyncIterator[Stored | CaughtUp]]:
        """An iterator of the events that match ``filter`` with a sequence above ``after``, in order.

        ``CaughtUp`` comes once, when everything that existed at the start has been read; without ``live`` the
        iterator ends there. Malformed messages go to the DLQ and are skipped.
        """
        filters = (filter,) if isinstance(filter, str) else tuple(filter)
        reader = EventReader(self.connection, filters, after=after, live=live)
        try:
            yield reader
        finally:
            await reader.close()

    @contextlib.asynccontextmanager
    async def pull(
        self,
        durable: str,
        filter: str | Sequence[str],
        *,
        ack_wait_s: float = 30.0,
        max_deliver: int = 5,
        max_ack_pending: int = 64,
        backoff: Sequence[float] | None = None,
    ) -> AsyncIterator[PullConsumer]:
        """A durable consumer that shares its events among all who pull it; see ``bus.work.consumer``."""
        async with pull_consumer(
            self.connection,
            durable,
            (filter,) if isinstance(filter, str) else tuple(filter),
            ack_wait_s=ack_wait_s,
            max_deliver=max_deliver,
            max_ack_pending=max_ack_pending,
            backoff=backoff,
        ) as consumer:
            self.consumers.add(consumer)
            try:
                yield consumer
            finally:
                self.consumers.discard(consumer)

    async def measure(self, *, within_s: float) -> Measured:
        """What the broker says within ``within_s`` of the consumers that are being pulled, and of the DLQ."""
        return await measure(self.connection, self.consumers, within_s=within_s)

    async def say(self, live: Live) -> None:
        """Sends this to whoever listens; nothing while the broker is away."""
        # It is worth nothing later: it must not fill the buffer of a client that reconnects.
        if self.connection.is_up:
            await self.connection.nc.publish(live_subject(live), live.model_dump_json().encode())
        else:
            self._unsaid += 1

    @contextlib.asynccontextmanager
    async def hear(self, word: type[L], **tokens: str) -> AsyncIterator[LiveReader[L]]:
        """An endless iterator of all that is said with this class, or with these tokens; a slow reader misses the
        oldest.
        """
        async with LiveReader(self.connection, filter_of(word, **tokens), word).listening() as reader:
            yield reader

    def statistics(self) -> BusStatistics:
        """What this connection did so far."""
        return BusStatistics(
            connected=self.connection.is_up,
            published=self._publisher.published,
            repeated=self._publisher.repeated,
            conflicts=self._publisher.conflicts,
            losses=self.connection.losses,
            retries=self.connection.retries,
            unsaid=self._unsaid,
            bytes_in=self.connection.nc.stats["in_bytes"],
            bytes_out=self.connection.nc.stats["out_bytes"],
        )


async def _prepared(link: Connection, replicas: int | None) -> None:
    """Sees to it that the streams exist; one who may not make them waits until somebody else has, and says so once."""
    said = False
    while True:
        try:
            return await link.persist(lambda: ensure_topology(link.js, replicas=replicas))
        except PermissionDeniedError as error:
            if not said:
                log.warning("%s; waiting until the operator has made the streams", error.message)
            said = True
            await asyncio.sleep(STREAMS_PAUSE_S)
