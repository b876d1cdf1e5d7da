"""What every agent process does around its own work: connect, beat, log, stop cleanly."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from typing import NoReturn

from agents.runtime.connection import Surroundings
from agents.runtime.crash_points import check_crash_points
from agents.runtime.joining import joined
from agents.runtime.round_figures import collect_sources
from agents.runtime.settings import MetricsSettings, ProcessSettings, warn_of_misspelled, wrong_setting
from agents.runtime.stopping import GONE_S, set_by_signals
from agents.runtime.tasks import background
from agents.words.events import Heartbeat
from bus.broker.settings import BusSettings
from bus.client import Bus
from bus.errors import FedbusError
from bus.process.folders import remove_left_behind
from bus.process.logs import configure

Body = Callable[[Bus, asyncio.Event], Awaitable[None]]
HEARTBEAT_S = 2.0
STOP_GRACE_S = 1.0
log = logging.getLogger(__name__)


def main(role: str, body: Body) -> None:
    """Runs an agent until SIGTERM or SIGINT; exits 1 with one line when it cannot go on.

    It finds its broker in the environment or in the folder, and looks again as long as there is none.
    """
    configure(role)
    try:
        configure(role, json=ProcessSettings().log_json)
        warn_of_misspelled(log.warning)
        check_crash_points()
        remove_left_behind()
        asyncio.run(run_agent(role, body, look=Surroundings(role).look, gone_s=GONE_S))
    except FedbusError as error:
        _fail(error)
    except ValueError as error:
        if (said := wrong_setting(error)) is None:
            raise
        _fail(said)


def _fail(error: FedbusError) -> NoReturn:
    log.error("%s [%s] %s", error.message, error.code, error.hint)
    sys.exit(1)


async def run_agent(
    role: str, body: Body, *, look: Callable[[], BusSettings] = BusSettings, gone_s: float | None = None
) -> None:
    """Connects, beats and runs ``body`` until it ends or a stop signal arrives.

    ``look`` says where the broker is, whenever it is asked. With ``FEDBUS_METRICS_PORT`` it serves the agent's figures
    beside that, from before there is a broker.

    On a signal ``body`` has ``STOP_GRACE_S`` to return after its event is set, and is cancelled then; an agent that
    still waits for its broker has nothing to finish and stops at once. With ``gone_s`` the process is gone by then.

    Raises:
        PortTakenError: something listens on ``FEDBUS_METRICS_PORT``.
    """
    stop, connected = asyncio.Event(), asyncio.Event()

    async def serve() -> None:
        async with _looked_at(role) as show, joined(look, name=role, say=log.warning) as bus:
            connected.set()
            log.info("connected; ready")
            async with background(_beat(bus, role)):
                show(bus)
                await body(bus, stop)

    with set_by_signals(stop, gone_s=gone_s):
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
    settings = MetricsSettings()
    if settings.port is None:
        yield lambda _: None
        return
    # Here, because most agents need no web server.
    from agents.runtime.metrics import telemetry

    async with telemetry(role, settings, collect_sources()) as figures:
        yield lambda bus: setattr(figures, "bus", bus)


async def _beat(bus: Bus, role: str) -> None:
    started = time.monotonic()
    while True:
        now = datetime.now(UTC)
        await bus.say(Heartbeat(role=role, id=str(os.getpid()), time=now, uptime_s=time.monotonic() - started))
        await asyncio.sleep(HEARTBEAT_S)
