"""Work beside other work, with asyncio: it ends with its block, and its failure is not lost."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine, Iterable
from typing import Any, TypeVar

from bus.process.failures import raise_first

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
        raise_first(failures)


async def together(works: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """The results of all ``works``, in their order; the first that fails ends the others, and its failure is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(work) for work in works]
    except BaseExceptionGroup as failures:
        raise_first(failures)
    return [task.result() for task in tasks]


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
