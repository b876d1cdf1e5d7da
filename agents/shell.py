"""What every agent process does around its own work: connect, beat, log, stop cleanly."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

from agents.figures import collect_sources
from bus.client import Bus
from bus.errors import FedbusError
from bus.events import Heartbeat
from bus.logs import configure
from bus.settings import BusSettings

T = TypeVar("T")
Body = Callable[[Bus, asyncio.Event], Awaitable[None]]
HEARTBEAT_S = 2.0
STOP_GRACE_S = 5.0
log = logging.getLogger(__name__)


def main(role: str, body: Body) -> None:
    """Runs an agent until SIGTERM or SIGINT; exits 1 with one line when it cannot go on."""
    configure(role, json=os.environ.get("FEDBUS_LOG_JSON") == "1")
    try:
        asyncio.run(run_agent(role, body))
    except FedbusError as error:
        log.error("%s [%s] %s", error.message, error.code, error.hint)
        sys.exit(1)


async def run_agent(role: str, body: Body, *, settings: BusSettings | None = None) -> None:
    """Connects, beats and runs ``body`` until it ends or a stop signal arrives.

    With ``FEDBUS_METRICS_PORT`` it serves the agent's figures beside that, from before there is a broker.

    On a signal ``body`` has ``STOP_GRACE_S`` to return after its event is set, and is cancelled then; an agent that
    still waits for its broker has nothing to finish and stops at once.

    Raises:
        PortTakenError: something listens on ``FEDBUS_METRICS_PORT``.
    """
    stop, connected = asyncio.Event(), asyncio.Event()

    async def serve() -> None:
        async with _looked_at(role) as show, Bus.connect(settings, name=role, on_waiting=log.warning) as bus:
            connected.set()
            log.info("connected; ready")
            async with background(_beat(bus, role)):
                show(bus)
                await body(bus, stop)

    with _signals_set(stop):
        serving, stopping = asyncio.create_task(serve()), asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not serving.done() and connected.is_set():
                await asyncio.wait({serving}, timeout=STOP_GRACE_S)
            serving.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await serving
        finally:
            stopping.cancel()
            serving.cancel()
            await asyncio.gather(serving, stopping, return_exceptions=True)
    log.info("stopped")


@contextlib.asynccontextmanager
async def _looked_at(role: str) -> AsyncIterator[Callable[[Bus], None]]:
    """Serves the agent's figures where the operator asks for them; the yielded function is told of its bus."""
    if not os.environ.get("FEDBUS_METRICS_PORT"):
        yield lambda _: None
        return
    # Here, because most agents need no web server.
    from agents.telemetry import MetricsSettings, telemetry

    async with telemetry(role, MetricsSettings(), collect_sources()) as figures:
        yield lambda bus: setattr(figures, "bus", bus)


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


async def _beat(bus: Bus, role: str) -> None:
    started = time.monotonic()
    while True:
        now = datetime.now(UTC)
        await bus.beat(Heartbeat(role=role, id=str(os.getpid()), time=now, uptime_s=time.monotonic() - started))
        await asyncio.sleep(HEARTBEAT_S)


@contextlib.contextmanager
def _signals_set(stop: asyncio.Event) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
