"""Calls of nats-py that end when they are told to."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable
from typing import TypeVar

import nats.errors

T = TypeVar("T")
FAREWELL_S = 0.4


async def cancellable(call: Awaitable[T]) -> T:
    """The result of a call of nats-py, or the cancellation that came meanwhile even where the call swallowed it.

    Its requests wait with ``asyncio.wait_for``, which in Python 3.11 returns the answer instead when both come at once;
    its full buffers ignore a cancellation outright (2.16). A task that is told once to stop must stop.
    """
    task = asyncio.current_task()
    cancels = task.cancelling() if task else 0
    try:
        return await call
    finally:
        if task and task.cancelling() > cancels:
            raise asyncio.CancelledError


async def briefly(farewell: Awaitable[object]) -> None:
    """Waits for last words to the broker for a moment only: it may be frozen, and nothing depends on them."""
    with contextlib.suppress(TimeoutError, nats.errors.Error, OSError):
        async with asyncio.timeout(FAREWELL_S):
            await cancellable(farewell)
