"""Pulls the messages of a JetStream consumer in batches, with flow control by count."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from nats.aio.msg import Msg

from bus.broker.connection import Connection
from bus.broker.stopping import briefly

# The broker ends each request after this time, which also tells a live consumer from a dead one.
EXPIRES_S = 10.0
_GRACE_S = 3.0
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Place:
    """Where a message stands: from the reply subject that JetStream gives it."""

    delivered: int
    sequence: int
    consumer_sequence: int
    time: datetime
    pending: int


def place_of(message: Msg) -> Place:
    """The parsed reply subject: ``$JS.ACK.[<domain>.<account>.]<stream>.<consumer>.<numbers>``."""
    tokens = message.reply.split(".")
    first = 4 if len(tokens) == 9 else 6
    delivered, sequence, consumer_sequence, nanoseconds, pending = (int(token) for token in tokens[first : first + 5])
    # In whole microseconds: a float of this size is not exact, and a time must be the same however it is read.
    taken = _EPOCH + timedelta(microseconds=nanoseconds // 1000)
    return Place(delivered, sequence, consumer_sequence, taken, pending)


class ConsumerGone(Exception):
    """The consumer does not exist any more, or does not answer."""


class PullReader:
    """The inbox of one pull consumer.

    ``ask`` for messages, then ``take`` those that have come. At most what was asked for is ever buffered.
    """

    def __init__(self, connection: Connection, stream: str, consumer: str) -> None:
        self._connection = connection
        self._next_subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"
        self._inbox = connection.nc.new_inbox()
        self._messages: deque[Msg] = deque()
        self._arrived = asyncio.Event()
        self._outstanding = 0
        self._answer_due = 0.0
        self._losses = connection.losses
        self._gone: str | None = None

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[PullReader]:
        """Receives until the end of the ``async with``."""
        subscription = await self._connection.nc.subscribe(self._inbox, cb=self._receive)
        try:
            with self._connection.waking(self):
                yield self
        finally:
            if self._connection.is_up:
                # What the broker has sent already still arrives: a consumer with acks gives it back.
                await briefly(subscription.drain())  # type: ignore[no-untyped-call]
            else:
                await briefly(subscription.unsubscribe())

    async def ask(self, batch: int, *, expires_s: float = EXPIRES_S) -> None:
        """Makes sure that about ``batch`` messages are buffered or on their way.

        Raises:
            ConsumerGone: the consumer was deleted, the connection was lost since the last call, or no answer came.
        """
        self._check()
        short = batch - len(self._messages) - self._outstanding
        if short <= batch // 2:
            return
        self._outstanding += short
        self._answer_due = time.monotonic() + expires_s + _GRACE_S
        request = json.dumps({"batch": short, "expires": int(expires_s * 1e9)}).encode()
        await self._connection.nc.publish(self._next_subject, request, self._inbox)

    async def take(self, limit: int, *, timeout_s: float) -> list[Msg]:
        """The next messages, at least one unless ``timeout_s`` passes or the reader is woken first."""
        if not self._messages:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._arrived.wait()
        self._arrived.clear()
        return [self._messages.popleft() for _ in range(min(limit, len(self._messages)))]

    @property
    def buffered(self) -> int:
        """How many messages were received and not taken."""
        return len(self._messages)

    def forget_requests(self) -> None:
        """After a lost connection: what was asked for before does not come."""
        self._outstanding, self._gone, self._losses = 0, None, self._connection.losses

    def drain(self) -> list[Msg]:
        """What was received and not taken."""
        left = list(self._messages)
        self._messages.clear()
        return left

    def wake(self) -> None:
        """Ends a ``take`` that waits."""
        self._arrived.set()

    def _check(self) -> None:
        if self._gone is not None:
            raise ConsumerGone(self._gone)
        if self._connection.losses != self._losses:
            raise ConsumerGone("the connection was lost")
        if self._outstanding and not self._messages and time.monotonic() > self._answer_due:
            raise ConsumerGone("no answer")

    async def _receive(self, message: Msg) -> None:
        # Only the broker's own status messages come without a reply subject; a foreign event may carry any header.
        status = message.headers.get("Status") if message.headers and not message.reply else None
        self._settle(message, status)
        if status is None:
            self._messages.append(message)
        self._arrived.set()

    def _settle(self, message: Msg, status: str | None) -> None:
        headers = message.headers or {}
        if status is None:
            self._outstanding = max(0, self._outstanding - 1)
        elif status in ("404", "408", "409") and "Nats-Pending-Messages" in headers:
            self._outstanding = max(0, self._outstanding - int(headers["Nats-Pending-Messages"]))
        elif status != "100":
            self._gone = headers.get("Description") or f"status {status}"
