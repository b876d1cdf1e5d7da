"""Work beside other work, with asyncio: it ends with its block, and its failure is not lost."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from typing import Any


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
