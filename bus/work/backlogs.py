"""Asks the broker what waits for an agent, within a bound: figures must not make anybody wait for a broker."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TypeVar

import nats.errors

from bus.broker.connection import Connection
from bus.broker.direct_get import stream_state
from bus.broker.topology import DLQ_STREAM
from bus.stream.letter_list import count_open
from bus.work.consumer import Backlog, PullConsumer

T = TypeVar("T")


@dataclass(frozen=True)
class Measured:
    """What the broker said in time: the backlog of each durable consumer by name, and how many dead letters wait.

    What it did not say in time is missing, or none.
    """

    backlogs: Mapping[str, Backlog]
    dead_letters: int | None


async def measure(connection: Connection, consumers: Collection[PullConsumer], *, within_s: float) -> Measured:
    """Asks for everything at once and takes what comes within ``within_s``; asks nothing while the broker is away."""
    if not connection.is_up:
        return Measured({}, None)
    backlogs = {one.name: asyncio.create_task(one.backlog()) for one in consumers}
    letters = asyncio.create_task(_dead_letters(connection))
    running: set[asyncio.Task[Backlog] | asyncio.Task[int]] = {*backlogs.values(), letters}
    try:
        await asyncio.wait(running, timeout=within_s)
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    return Measured(
        {name: found for name, task in backlogs.items() if (found := _result(task)) is not None}, _result(letters)
    )


async def _dead_letters(connection: Connection) -> int:
    return await count_open(connection, (await stream_state(connection, DLQ_STREAM, ">")).subjects)


def _result(task: asyncio.Task[T]) -> T | None:
    """What a task that ended gave; nothing when it was cut off or the broker had no answer."""
    if task.cancelled():
        return None
    error = task.exception()
    if error is None:
        return task.result()
    if isinstance(error, nats.errors.Error | TimeoutError):
        return None
    raise error
