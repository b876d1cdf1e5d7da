"""Work beside other work, with asyncio: it ends with its block, and its failure is not lost."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

T = TypeVar("T")


@contextlib.asynccontextmanager
async def background(work: Coroutine[Any, Any, None]) -> AsyncIterator[asyncio.Task[None]]:
    """Runs ``work`` beside the body of the ``async with`` and cancels it at its end; its failure ends the body."""
    try:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(work)
            try:
                yield task
            finally:
                task.cancel()
    except BaseExceptionGroup as failures:
        # One failure is the usual case: raised as itself, so that callers can name the error they expect.
        if len(failures.exceptions) == 1:
            raise failures.exceptions[0] from None
        raise


async def until(stop: asyncio.Event, work: Coroutine[Any, Any, None]) -> None:
    """Runs ``work`` and cancels it when ``stop`` is set: for work that may be cut anywhere, because the stream has it.

    Raises:
        whatever ``work`` raises.
    """
    async with background(work) as running:
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({stopping, running}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()


class Ticker(Generic[T]):
    """Reads an endless iterator and lets its reader also wake up at a given time.

    Use as ``async with Ticker(items) as ticker`` and call ``next_or_tick``. At most ``capacity`` items wait.
    """

    def __init__(self, items: AsyncIterator[T], *, capacity: int = 256) -> None:
        self._items = items
        self._queue: asyncio.Queue[T] = asyncio.Queue(capacity)
        self._running = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Ticker[T]:
        await self._running.enter_async_context(background(self._pump()))
        return self

    async def __aexit__(self, *exc: object) -> bool | None:
        return await self._running.__aexit__(*exc)  # type: ignore[arg-type]

    async def _pump(self) -> None:
        async for item in self._items:
            await self._queue.put(item)

    async def next_or_tick(self, at: datetime | None) -> T | None:
        """The next item, or nothing once the clock passes ``at`` (never, without one)."""
        if at is None:
            return await self._queue.get()
        wait_s = max(0.0, (at - datetime.now(UTC)).total_seconds())
        try:
            async with asyncio.timeout(wait_s):
                return await self._queue.get()
        except TimeoutError:
            return None
