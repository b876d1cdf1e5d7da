"""Hears what is said live: core NATS, not kept, and a slow reader misses the oldest."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator
from typing import Generic, TypeVar

from nats.aio.msg import Msg
from pydantic import ValidationError

from bus.broker.connection import Connection
from bus.broker.direct_get import was_copied
from bus.words.payload import Live

M = TypeVar("M", bound=Live)
CAPACITY = 4096


class LiveReader(Generic[M]):
    """An endless iterator of messages; ``dropped`` counts those missed by a slow reader, ``malformed`` bad ones."""

    def __init__(self, connection: Connection, subject: str, model: type[M]) -> None:
        self._connection = connection
        self._subject = subject
        self._model = model
        self._messages: deque[M] = deque(maxlen=CAPACITY)
        self._arrived = asyncio.Event()
        self.dropped = 0
        self.malformed = 0

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[LiveReader[M]]:
        """Receives until the end of the ``async with``: all that anybody says on this broker from its first line on.

        The other nodes of a cluster learn of it from this one, a moment later.
        """
        subscription = await self._connection.nc.subscribe(self._subject, cb=self._receive)
        await self._connection.confirmed()
        try:
            with self._connection.waking(self):
                yield self
        finally:
            if not self._connection.nc.is_closed and not self._connection.nc.is_draining:
                await subscription.unsubscribe()

    def __aiter__(self) -> LiveReader[M]:
        return self

    async def __anext__(self) -> M:
        while not self._messages:
            self._arrived.clear()
            await self._connection.connected()
            await self._arrived.wait()
        return self._messages.popleft()

    def wake(self) -> None:
        """Look at the connection: it may be closed for good."""
        self._arrived.set()

    async def _receive(self, message: Msg) -> None:
        if was_copied(message):
            self.malformed += 1
            return
        try:
            item = self._model.model_validate_json(message.data)
        except ValidationError:
            self.malformed += 1
            return
        self.dropped += len(self._messages) == CAPACITY
        self._messages.append(item)
        self._arrived.set()
