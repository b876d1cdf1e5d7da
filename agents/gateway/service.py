"""Starts and stops the gateway: binds its port, runs the web server beside the hub, and says where it listens."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import socket
import ssl
from collections.abc import AsyncIterator, Iterator

import uvicorn

from agents.core.protocol import CHUNK_HEADER, MAX_CHUNK_BYTES
from agents.gateway.hub import Hub
from agents.gateway.patience import Patience, patient_protocols
from agents.gateway.settings import GatewaySettings
from agents.gateway.spool import write_atomically
from agents.gateway.web import application
from agents.shell import background
from bus.client import Bus
from bus.errors import FedbusError, PortTakenError

log = logging.getLogger(__name__)
BACKLOG = 1024
_GOODBYE_S = 2


class TlsFilesError(FedbusError):
    """The gateway's certificate or key is missing or unusable."""

    code = "tls_files"


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: the agent's shell decides when to stop."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


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
    with _listening(settings) as (listener, url):
        async with Hub(bus, settings) as hub:
            config = uvicorn.Config(
                application(hub, stop),
                ssl_context_factory=None if tls is None else lambda *_: tls,
                http=http,
                ws=web_socket,
                ws_max_size=MAX_CHUNK_BYTES + CHUNK_HEADER.size,
                ws_per_message_deflate=False,
                log_config=None,
                access_log=False,
                server_header=False,
                lifespan="off",
                backlog=BACKLOG,
                timeout_graceful_shutdown=_GOODBYE_S,
            )
            server = _Server(config)
            async with background(server.serve([listener])) as serving:
                if settings.url_file is not None:
                    await asyncio.to_thread(write_atomically, settings.url_file, f"{url}\n".encode())
                log.info("listening on %s", url)
                try:
                    yield url
                finally:
                    stop.set()
                    hub.close_all()
                    server.should_exit = True
                    await asyncio.wait({serving}, timeout=2 * _GOODBYE_S)


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


@contextlib.contextmanager
def _listening(settings: GatewaySettings) -> Iterator[tuple[socket.socket, str]]:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # The protocol is named because asyncio sets TCP_NODELAY only then; without it every answer waits some 40 ms for the
    # acknowledgement of the one before.
    with socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((settings.host, settings.port))
            listener.listen(BACKLOG)
        except OSError as error:
            raise PortTakenError(
                f"cannot listen on {settings.host}:{settings.port}: {error.strerror}",
                hint="set FEDBUS_GATEWAY_PORT to a free port, or to 0 to get one",
            ) from None
        # Who listens everywhere is reached on this machine through its loopback address.
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)
        host = f"[{host}]" if family == socket.AF_INET6 else host
        scheme = "https" if settings.tls_cert else "http"
        yield listener, f"{scheme}://{host}:{listener.getsockname()[1]}"
