"""Durable pull consumers: events shared among workers, acknowledged one by one, sent again, and buried at the end."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

import nats.errors
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig
from nats.js.errors import NotFoundError

from bus.broker.connection import Connection
from bus.broker.stopping import cancellable
from bus.errors import MalformedEventError
from bus.process.crash_points import crash_point
from bus.stream.dead_letters import bury
from bus.stream.event_reader import read_event
from bus.stream.pull_reader import ConsumerGone, PullReader, place_of
from bus.words.envelope import Stored
from bus.words.subjects import EVENT_STREAM, checked

BACKOFF_S = (0.5, 2.0, 10.0, 30.0)


@dataclass(frozen=True)
class Delivery:
    """An event that was handed to this worker for the ``attempt``-th time; it comes again unless it is settled."""

    stored: Stored
    attempt: int
    _message: Msg = field(repr=False)
    _consumer: PullConsumer = field(repr=False)

    async def ack(self) -> None:
        """It is done; waits until the broker has noted that.

        An acknowledgement that is lost with the connection is not an error: the event comes again.
        """
        await self._consumer.settle(self._message)

    async def nak(self, delay_s: float | None = None) -> None:
        """It failed; it comes again after ``delay_s``, or the consumer's backoff for this attempt."""
        delay = self._consumer.backoff_s(self.attempt) if delay_s is None else delay_s
        with contextlib.suppress(nats.errors.Error):
            await self._message.nak(delay)

    async def in_progress(self) -> None:
        """It takes longer: the broker waits ``ack_wait_s`` from now."""
        with contextlib.suppress(nats.errors.Error):
            await self._message.in_progress()

    async def terminate(self, reason: str) -> None:
        """Nobody can do it: it goes to the DLQ with ``reason`` and does not come again."""
        await self._consumer.give_up(self._message, reason)


@dataclass(frozen=True)
class Backlog:
    """What a durable consumer has before it: ``waiting`` events that were not delivered yet, ``unacknowledged`` ones
    that were and are not settled, ``redelivered`` of these more than once.
    """

    waiting: int
    unacknowledged: int
    redelivered: int


class PullConsumer:
    """One worker's share of a durable consumer of ``stream``.

    Attributes:
        name: of the durable consumer.
        reader: receives what was asked for, until ``fetch`` takes it.
        redeliveries: events that came to this worker not for the first time.
        buried: what it put on the DLQ.
    """

    stream = EVENT_STREAM

    def __init__(self, connection: Connection, config: ConsumerConfig, backoff: Sequence[float]) -> None:
        assert config.durable_name is not None
        self.name = config.durable_name
        self.connection = connection
        self._config = config
        self._backoff = tuple(backoff)
        self.reader = PullReader(connection, self.stream, self.name)
        self.ack_wait_s = config.ack_wait or 30.0
        self.max_deliver = config.max_deliver or -1
        self.redeliveries = 0
        self.buried = 0

    async def fetch(self, n: int, timeout_s: float) -> list[Delivery]:
        """Up to ``n`` events: as soon as there is one, or none once ``timeout_s`` has passed.

        Malformed messages go to the DLQ and are not delivered again.
        """
        deadline = time.monotonic() + timeout_s
        while (left := deadline - time.monotonic()) > 0:
            try:
                await self.reader.ask(n, expires_s=max(0.1, left))
            except (ConsumerGone, nats.errors.Error):
                await self._restore(left)
                continue
            found = [await self._deliver(one) for one in await self.reader.take(n, timeout_s=left)]
            if deliveries := [one for one in found if one is not None]:
                self.redeliveries += sum(one.attempt > 1 for one in deliveries)
                return deliveries
        return []

    async def _restore(self, timeout_s: float) -> None:
        """After a lost connection, or when somebody deleted the consumer."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self.ensure()
                self.reader.forget_requests()

    async def ensure(self) -> None:
        """Makes the consumer, or gives an existing one this config."""
        await self.connection.persist(lambda: self.connection.js.add_consumer(self.stream, self._config))

    async def _deliver(self, message: Msg) -> Delivery | None:
        place = place_of(message)
        try:
            return Delivery(read_event(message, place), place.delivered, message, self)
        except MalformedEventError as error:
            await self.give_up(message, error.message, malformed=True)
            return None

    async def settle(self, message: Msg) -> None:
        """Tells the broker that ``message`` needs no further delivery, and waits until it has noted that."""
        with contextlib.suppress(nats.errors.Error):
            await cancellable(message.ack_sync(timeout=5))

    async def give_up(self, message: Msg, reason: str, *, malformed: bool = False) -> None:
        """Buries ``message``, and only then ends its delivery, so that a crash between loses nothing."""
        sequence, consumer = place_of(message).sequence, "" if malformed else self.name
        self.buried += await bury(self.connection, sequence, message.subject, reason, message.data, consumer=consumer)
        await self._end(message)

    async def _end(self, message: Msg) -> None:
        crash_point("worker.buried")
        with contextlib.suppress(nats.errors.Error):
            await message.term()

    def backoff_s(self, attempt: int) -> float:
        """How long to wait after the ``attempt``-th failure."""
        return self._backoff[min(attempt, len(self._backoff)) - 1]

    async def pending(self) -> int:
        """Events that wait for a worker: those not delivered yet and those delivered but not settled."""
        try:
            backlog = await self.connection.persist(self.backlog)
        except NotFoundError:
            return 0
        return backlog.waiting + backlog.unacknowledged

    async def backlog(self) -> Backlog:
        """What the broker says now; asks once.

        Raises:
            nats.errors.Error: it does not answer, or there is no such consumer.
        """
        info = await self.connection.js.consumer_info(self.stream, self.name)
        return Backlog(info.num_pending or 0, info.num_ack_pending or 0, info.num_redelivered or 0)

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[PullConsumer]:
        """Receives until the end of the ``async with``; what was not taken goes back at once."""
        await self.ensure()
        try:
            async with self.reader.listening():
                yield self
        finally:
            for message in self.reader.drain():
                with contextlib.suppress(nats.errors.Error):
                    await message.nak()


@contextlib.asynccontextmanager
async def pull_consumer(
    connection: Connection,
    durable: str,
    filters: tuple[str, ...],
    *,
    ack_wait_s: float,
    max_deliver: int,
    max_ack_pending: int,
    backoff: Sequence[float] | None,
) -> AsyncIterator[PullConsumer]:
    """A worker on the durable consumer named ``durable``; ``max_deliver`` -1 delivers for ever."""
    config = ConsumerConfig(
        durable_name=checked(durable),
        ack_policy=AckPolicy.EXPLICIT,
        ack_wait=ack_wait_s,
        max_deliver=max_deliver,
        max_ack_pending=max_ack_pending,
        filter_subjects=list(filters),
    )
    async with PullConsumer(connection, config, backoff or BACKOFF_S).open() as consumer:
        yield consumer
