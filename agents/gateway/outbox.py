"""What the gateway has to say to one client: a bounded queue that a connection's writer empties."""

from __future__ import annotations

import asyncio
from collections import deque

from agents.core.exchange.answers import NOT_READING, Farewell
from bus.words.values import Frozen

CAPACITY = 256


class Outbox:
    """Messages in order; a client that does not read them is dropped when ``CAPACITY`` wait."""

    def __init__(self) -> None:
        self._waiting: deque[Frozen] = deque()
        self._farewell: Farewell | None = None
        self._something = asyncio.Event()

    def say(self, message: Frozen) -> bool:
        """Queues a message; false when the client is dropped for not reading."""
        if full := len(self._waiting) >= CAPACITY:
            self._waiting.clear()
            self.close(*NOT_READING)
        self._waiting.append(message)
        self._something.set()
        return not full

    def close(self, code: int, reason: str) -> None:
        """Ends the connection once what is queued has been sent; the first reason counts."""
        self._farewell = self._farewell or Farewell(code, reason)
        self._something.set()

    async def next(self) -> Frozen | Farewell:
        """What to send next."""
        while not self._waiting and self._farewell is None:
            self._something.clear()
            await self._something.wait()
        if self._waiting:
            return self._waiting.popleft()
        assert self._farewell is not None
        return self._farewell
