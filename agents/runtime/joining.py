"""Joins the bus, however long its broker takes to come, whatever its port and its logins become meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from agents.runtime.reminding import Reminder
from bus.broker.settings import BusSettings
from bus.client import Bus
from bus.errors import BrokerUnavailableError

ATTEMPT_S = 2.0
PAUSE_S = 0.5


@contextlib.asynccontextmanager
async def joined(look: Callable[[], BusSettings], *, name: str, say: Callable[[str], object]) -> AsyncIterator[Bus]:
    """A connected bus, as ``Bus.connect`` gives it.

    A broker that is away is waited for, and one that refuses this login is asked again: both may be mended from outside
    while this process waits.

    Args:
        look: says where the broker is and how to log in, asked anew for each attempt.
        name: of this process.
        say: called with a line that says why it waits: at once, for each new reason, and every ten seconds.
    """
    reminder = Reminder(say)
    async with contextlib.AsyncExitStack() as stack:
        while True:
            try:
                bus = await stack.enter_async_context(Bus.connect(look(), name=name, wait_s=ATTEMPT_S))
                break
            except BrokerUnavailableError as error:
                reminder.waits(f"{error.message} ({error.hint}); trying again")
            await asyncio.sleep(PAUSE_S)
        yield bus
