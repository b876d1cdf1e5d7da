"""Works on the events of a durable consumer: tries again, gives up at the end, and takes up what was given back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from bus.errors import FedbusError
from bus.process.failures import raise_first
from bus.words.envelope import Stored
from bus.work.consumer import Delivery, PullConsumer
from bus.work.retries import retries_of

FETCH_S = 5.0
Handler = Callable[[Stored], Awaitable[None]]
GivenUp = Callable[[Stored, str], Awaitable[None]]
log = logging.getLogger(__name__)


async def work(
    consumer: PullConsumer,
    handler: Handler,
    *,
    concurrency: int,
    permanent: tuple[type[Exception], ...] = (),
    attempts: int | None = None,
    on_given_up: GivenUp | None = None,
) -> None:
    """Handles events for ever, ``concurrency`` at a time.

    An event whose handler returns is acknowledged. One whose handler raises a FedbusError, OSError or TimeoutError
    comes again after the consumer's backoff, and goes to the DLQ after its last attempt; errors that are ``permanent``
    send it there at once. Any other exception is a defect: it ends ``work`` and the event comes again to somebody.
    An event that waits for its next attempt counts against the consumer's ``max_ack_pending``. Events that an operator
    gives back after they were given up (``bus.work.retries``) are handled between the others.

    Args:
        attempts: the last one; none: the consumer's ``max_deliver``. With a consumer that delivers for ever it is this
            worker that gives up, also on an event whose workers ended again and again with it in their hands.
        on_given_up: says so, with the reason, before the event goes to the DLQ; what it says may have been said before.
    """
    worker = _Worker(handler, concurrency, permanent, attempts, on_given_up)
    try:
        async with retries_of(consumer) as retries, asyncio.TaskGroup() as group:
            group.create_task(worker.take(consumer, concurrency, group))
            group.create_task(worker.take(retries, 1, group))
    except BaseExceptionGroup as failures:
        raise_first(failures)


class _Worker:
    """Handles the events of several consumers, ``concurrency`` at a time in all."""

    def __init__(
        self,
        handler: Handler,
        concurrency: int,
        permanent: tuple[type[Exception], ...],
        attempts: int | None,
        on_given_up: GivenUp | None,
    ) -> None:
        self._handler = handler
        self._permanent = permanent
        self._attempts = attempts
        self._on_given_up = on_given_up
        self._slots = asyncio.Semaphore(concurrency)

    async def take(self, consumer: PullConsumer, at_once: int, group: asyncio.TaskGroup) -> None:
        """Handles the events of one consumer for ever."""
        running: set[asyncio.Task[None]] = set()
        while True:
            if len(running) >= at_once:
                await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            # Only as many as can be handled soon: they are told to the broker as being worked on.
            for delivery in await consumer.fetch(at_once - len(running), timeout_s=FETCH_S):
                task = group.create_task(self._handle(consumer, delivery))
                running.add(task)
                task.add_done_callback(running.discard)

    async def _handle(self, consumer: PullConsumer, delivery: Delivery) -> None:
        beating = asyncio.create_task(_keep(consumer, delivery))
        last = self._attempts or consumer.max_deliver
        try:
            if 0 < last < delivery.attempt:
                await self._give_up(delivery, f"its worker ended {delivery.attempt - 1} times while it had it")
                return
            async with self._slots:
                await self._handler(delivery.stored)
        except asyncio.CancelledError:
            # It was not the event's fault: somebody else may have it at once.
            await delivery.nak(0)
            raise
        except (FedbusError, OSError, TimeoutError) + self._permanent as error:  # noqa: RUF005 - what mypy can follow
            reason = f"{type(error).__name__}: {error}"
            if isinstance(error, self._permanent) or 0 < last <= delivery.attempt:
                await self._give_up(delivery, reason)
            else:
                log.warning("attempt %d failed: %s", delivery.attempt, reason, extra=_where(delivery))
                await delivery.nak()
        else:
            await delivery.ack()
        finally:
            beating.cancel()
            await asyncio.gather(beating, return_exceptions=True)

    async def _give_up(self, delivery: Delivery, reason: str) -> None:
        log.error("given up at attempt %d: %s", delivery.attempt, reason, extra=_where(delivery))
        if self._on_given_up is not None:
            await self._on_given_up(delivery.stored, reason)
        await delivery.terminate(reason)


async def _keep(consumer: PullConsumer, delivery: Delivery) -> None:
    while True:
        await asyncio.sleep(consumer.ack_wait_s / 3)
        await delivery.in_progress()


def _where(delivery: Delivery) -> dict[str, object]:
    data = delivery.stored.event.data
    return {key: value for key in ("run", "round", "user") if (value := getattr(data, key, None)) is not None}
