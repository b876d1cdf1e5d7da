"""Durable pull consumers: events shared among workers, acknowledged one by one, retried, and buried at the end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import nats.errors
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig
from nats.js.errors import NotFoundError

from bus.connection import Connection, cancellable
from bus.dead_letters import bury
from bus.envelope import Stored
from bus.errors import FedbusError, MalformedEventError
from bus.follow import read_event
from bus.reader import ConsumerGone, PullReader, place_of
from bus.subjects import checked
from bus.topology import EVENT_STREAM

BACKOFF_S = (0.5, 2.0, 10.0, 30.0)
FETCH_S = 5.0
Handler = Callable[[Stored], Awaitable[None]]
log = logging.getLogger(__name__)


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
        with contextlib.suppress(nats.errors.Error):
            await cancellable(self._message.ack_sync(timeout=5))

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


class PullConsumer:
    """One worker's share of a durable consumer; ``buried`` counts what it put on the DLQ."""

    def __init__(self, connection: Connection, config: ConsumerConfig, backoff: Sequence[float]) -> None:
        assert config.durable_name is not None
        self._connection = connection
        self._config = config
        self._backoff = tuple(backoff)
        self._reader = PullReader(connection, EVENT_STREAM, config.durable_name)
        self.ack_wait_s = config.ack_wait or 30.0
        self.max_deliver = config.max_deliver or -1
        self.buried = 0

    async def fetch(self, n: int, timeout_s: float) -> list[Delivery]:
        """Up to ``n`` events: as soon as there is one, or none once ``timeout_s`` has passed.

        Malformed messages go to the DLQ and are not delivered again.
        """
        deadline = time.monotonic() + timeout_s
        while (left := deadline - time.monotonic()) > 0:
            try:
                await self._reader.ask(n, expires_s=max(0.1, left))
            except (ConsumerGone, nats.errors.Error):
                await self._restore(left)
                continue
            found = [await self._deliver(one) for one in await self._reader.take(n, timeout_s=left)]
            if deliveries := [one for one in found if one is not None]:
                return deliveries
        return []

    async def _restore(self, timeout_s: float) -> None:
        """After a lost connection, or when somebody deleted the consumer."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self.ensure()
                self._reader.forget_requests()

    async def ensure(self) -> None:
        """Makes the consumer, or gives an existing one this config."""
        await self._connection.persist(lambda: self._connection.js.add_consumer(EVENT_STREAM, self._config))

    async def _deliver(self, message: Msg) -> Delivery | None:
        place = place_of(message)
        try:
            return Delivery(read_event(message, place), place.delivered, message, self)
        except MalformedEventError as error:
            await self.give_up(message, error.message)
            return None

    async def give_up(self, message: Msg, reason: str) -> None:
        """Buries ``message``, and only then ends its delivery, so that a crash between loses nothing."""
        sequence = place_of(message).sequence
        self.buried += await bury(self._connection, sequence, message.subject, reason, message.data)
        with contextlib.suppress(nats.errors.Error):
            await message.term()

    def backoff_s(self, attempt: int) -> float:
        """How long to wait after the ``attempt``-th failure."""
        return self._backoff[min(attempt, len(self._backoff)) - 1]

    async def pending(self) -> int:
        """Events that wait for a worker: those not delivered yet and those delivered but not settled."""
        try:
            info = await self._connection.persist(
                lambda: self._connection.js.consumer_info(EVENT_STREAM, self._config.durable_name or "")
            )
        except NotFoundError:
            return 0
        return (info.num_pending or 0) + (info.num_ack_pending or 0)

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[PullConsumer]:
        """Receives until the end of the ``async with``; what was not taken goes back at once."""
        await self.ensure()
        try:
            async with self._reader.listening():
                yield self
        finally:
            for message in self._reader.drain():
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


async def work(
    consumer: PullConsumer, handler: Handler, *, concurrency: int, permanent: tuple[type[Exception], ...] = ()
) -> None:
    """Handles events for ever, ``concurrency`` at a time.

    An event whose handler returns is acknowledged. One whose handler raises a FedbusError, OSError or TimeoutError
    comes again after the consumer's backoff, and goes to the DLQ after its last attempt; errors that are ``permanent``
    send it there at once. Any other exception is a defect: it ends ``work`` and the event comes again to somebody.
    An event that waits for its next attempt counts against the consumer's ``max_ack_pending``.
    """
    running: set[asyncio.Task[None]] = set()
    async with asyncio.TaskGroup() as group:
        while True:
            if len(running) >= concurrency:
                await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            # Only as many as can be handled now: nobody would keep those that wait here from coming again.
            for delivery in await consumer.fetch(concurrency - len(running), timeout_s=FETCH_S):
                task = group.create_task(_handle(consumer, delivery, handler, permanent))
                running.add(task)
                task.add_done_callback(running.discard)


async def _handle(
    consumer: PullConsumer, delivery: Delivery, handler: Handler, permanent: tuple[type[Exception], ...]
) -> None:
    beating = asyncio.create_task(_keep(consumer, delivery))
    try:
        await handler(delivery.stored)
    except asyncio.CancelledError:
        # It was not the event's fault: somebody else may have it at once.
        await delivery.nak(0)
        raise
    except (FedbusError, OSError, TimeoutError) + permanent as error:  # noqa: RUF005 - what mypy can follow
        reason = f"{type(error).__name__}: {error}"
        if isinstance(error, permanent) or 0 < consumer.max_deliver <= delivery.attempt:
            log.error("given up at attempt %d: %s", delivery.attempt, reason, extra=_where(delivery))
            await delivery.terminate(reason)
        else:
            log.warning("attempt %d failed: %s", delivery.attempt, reason, extra=_where(delivery))
            await delivery.nak()
    else:
        await delivery.ack()
    finally:
        beating.cancel()
        await asyncio.gather(beating, return_exceptions=True)


async def _keep(consumer: PullConsumer, delivery: Delivery) -> None:
    while True:
        await asyncio.sleep(consumer.ack_wait_s / 3)
        await delivery.in_progress()


def _where(delivery: Delivery) -> dict[str, object]:
    data = delivery.stored.event.data
    return {key: value for key in ("run", "round", "user") if (value := getattr(data, key, None)) is not None}
