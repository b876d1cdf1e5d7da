"""Starts and stops the gateway: binds its port, runs the web server beside the hub, and says where it listens."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

from agents.core.protocol import CHUNK_HEADER, MAX_CHUNK_BYTES
from agents.gateway.hub import Hub
from agents.gateway.settings import GatewaySettings
from agents.gateway.spool import write_atomically
from agents.gateway.web import application
from agents.web_server import listening, serving
from bus.client import Bus

log = logging.getLogger(__name__)


async def serve(bus: Bus, stop: asyncio.Event) -> None:
    """The body of the gateway agent."""
    async with running_gateway(bus, GatewaySettings()):
        await stop.wait()


@contextlib.asynccontextmanager
async def running_gateway(bus: Bus, settings: GatewaySettings) -> AsyncIterator[str]:
    """Serves until the block ends; yields the base URL, without a slash at its end.

    Raises:
        PortTakenError: something listens on the port.
    """
    stop = asyncio.Event()
    hint = "set FEDBUS_GATEWAY_PORT to a free port, or to 0 to get one"
    with listening(settings.host, settings.port, hint=hint) as listener:
        hub = Hub(bus, settings)
        app = application(hub, stop)
        async with (
            hub,
            serving(
                app,
                listener,
                stop=stop,
                ws="websockets-sansio",
                ws_max_size=MAX_CHUNK_BYTES + CHUNK_HEADER.size,
                ws_per_message_deflate=False,
            ),
        ):
            if settings.url_file is not None:
                await asyncio.to_thread(write_atomically, settings.url_file, f"{listener.url}\n".encode())
            log.info("listening on %s", listener.url)
            try:
                yield listener.url
            finally:
                hub.close_all()
