"""What the conversation wants done and takes time: work with the broker, the stream, the spool and the objects."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from agents.core.exchange import effects
from agents.core.exchange.connections import Connection
from agents.core.exchange.conversation import Conversation
from agents.gateway.updates import Updates
from agents.words.events import Progress, UpdateRejected, UpdateSubmitted
from bus.client import Bus
from bus.errors import ConflictingEventError
from bus.process.crash_points import crash_point
from bus.words.envelope import Event
from bus.work.consumer import Delivery, PullConsumer

log = logging.getLogger(__name__)
T = TypeVar("T")


class Errands:
    """Does one effect at a time, as often at once as it is asked to, and tells the conversation how each went.

    Args:
        reached: waits until the stream has been read up to a sequence; ``TimeoutError`` if that takes too long.
    """

    def __init__(
        self,
        bus: Bus,
        consumer: PullConsumer,
        updates: Updates,
        conversation: Conversation,
        reached: Callable[[int], Awaitable[None]],
    ) -> None:
        self._bus = bus
        self._consumer = consumer
        self._updates = updates
        self._conversation = conversation
        self._reached = reached

    async def do(self, effect: effects.Effect) -> Connection | None:
        """Does it; answers with the connection that waited for that, if one did."""
        core = self._conversation
        match effect:
            case effects.Fetch(count, wait_s):
                core.pool.fetched(await self._consumer.fetch(count, wait_s), time.monotonic())
            case effects.Ack(Delivery() as delivery):
                await delivery.ack()
            case effects.GiveBack(Delivery() as delivery, delay_s):
                await delivery.nak(delay_s)
            case effects.InProgress(deliveries):
                for one in deliveries:
                    if isinstance(one, Delivery):
                        await one.in_progress()
            case effects.TellProgress(connection, progress):
                await self._tell(progress)
                core.told(connection)
                return connection
            case effects.AwaitSequence(connection, _, sequence):
                in_time = await self._waited_for(sequence)
                core.reached(effect, time.monotonic(), in_time=in_time)
                return connection
            case effects.OpenUpload(upload):
                core.opened(upload, await self._updates.open(upload), time.monotonic())
                return upload.connection
            case effects.WriteChunk(upload, offset, data):
                core.written(upload, await self._updates.write(upload, offset, data), time.monotonic())
                return upload.connection
            case effects.CheckUpdate(commit):
                await self._step(commit, self._updates.check(commit), core.commits.checked)
            case effects.StoreUpdate(commit):
                await self._step(commit, self._updates.store(commit), core.commits.stored)
            case effects.PublishUpdate(commit, event, cause):
                await self._step(commit, self._submit(event, cause), core.commits.submitted)
            case effects.PublishRejection(event, _, asker):
                said = not effect.written or await self._reject(event)
                core.commits.rejected(effect, time.monotonic(), said=said)
                return asker
        return None

    async def _step(
        self, commit: effects.Commit, step: Awaitable[T], then: Callable[[effects.Commit, T], None]
    ) -> None:
        try:
            result = await step
        except Exception:
            # Whatever it is: one update must not end the gateway.
            log.exception("an update could not be kept; its task goes back", extra=commit.upload.lease.about)
            self._conversation.commits.failed(commit)
        else:
            then(commit, result)

    async def _submit(self, submitted: UpdateSubmitted, cause: Event | None) -> bool:
        """Whether another update of the task is in the stream, so that this one cannot be."""
        try:
            await self._bus.publish(submitted, cause=cause)
        except ConflictingEventError:
            return True
        crash_point("gateway.submitted")
        return False

    async def _reject(self, rejected: UpdateRejected) -> bool:
        """Whether the stream says now that the update was rejected; a lease has one rejection."""
        try:
            await self._bus.publish(rejected)
        except ConflictingEventError:
            # A gateway that stopped right after saying so meets its own words.
            log.info("this lease's rejection was published before", extra={"run": rejected.run})
        except Exception:
            log.exception("a rejection could not be published", extra={"run": rejected.run})
            return False
        return True

    async def _tell(self, progress: Progress) -> None:
        try:
            await self._bus.say(progress)
        except Exception:
            log.exception("progress could not be said", extra={"run": progress.run})

    async def _waited_for(self, sequence: int) -> bool:
        try:
            await self._reached(sequence)
        except TimeoutError:
            return False
        return True
