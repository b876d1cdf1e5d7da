"""Starts and stops the gateway: binds its port, runs the web server beside the hub, and says where it listens."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import ssl
from collections.abc import AsyncIterator

from agents.core.exchange.messages import CHUNK_HEADER, MAX_CHUNK_BYTES
from agents.gateway.hub import Hub
from agents.gateway.patience import Patience, patient_protocols
from agents.gateway.settings import GatewaySettings
from agents.gateway.web import application
from agents.runtime.web import listening, serving
from bus.client import Bus
from bus.errors import FedbusError
from bus.process.files import write_atomically

log = logging.getLogger(__name__)


class TlsFilesError(FedbusError):
    """The gateway's certificate or key is missing or unusable."""

    code = "tls_files"


async def serve(bus: Bus, stop: asyncio.Event) -> None:
    """The body of the gateway agent."""
    _take_files()
    async with running_gateway(bus, GatewaySettings()):
        await stop.wait()


@contextlib.asynccontextmanager
async def running_gateway(bus: Bus, settings: GatewaySettings) -> AsyncIterator[str]:
    """Serves until the block ends; yields the base URL, without a slash at its end.

    Raises:
        PortTakenError: something listens on the port.
        TlsFilesError: the files of the certificate cannot be used.
    """
    stop, tls = asyncio.Event(), _tls(settings)
    http, web_socket = patient_protocols(Patience(settings.request_s, settings.stall_s, settings.max_connections))
    hint = "set FEDBUS_GATEWAY_PORT to a free port, or to 0 to get one"
    with listening(settings.host, settings.port, scheme="https" if tls else "http", hint=hint) as listener:
        hub = Hub(bus, settings)
        app = application(hub, stop)
        async with (
            hub,
            serving(
                app,
                listener,
                stop=stop,
                ssl_context_factory=None if tls is None else lambda *_: tls,
                http=http,
                ws=web_socket,
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


def _tls(settings: GatewaySettings) -> ssl.SSLContext | None:
    if settings.tls_cert is None:
        if settings.tls_key is not None:
            raise TlsFilesError("a TLS key without a certificate", hint="set FEDBUS_GATEWAY_TLS_CERT too")
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(settings.tls_cert, settings.tls_key)
    except OSError as error:
        raise TlsFilesError(
            f"the certificate cannot be used: {error.strerror or error}",
            hint="FEDBUS_GATEWAY_TLS_CERT and FEDBUS_GATEWAY_TLS_KEY name PEM files that belong together",
        ) from None
    return context


def _take_files() -> None:
    """Lets this process open as many sockets as the system allows it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
