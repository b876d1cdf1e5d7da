"""Listens on a port and serves an ASGI application there beside an agent's other work."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import uvicorn

from agents.runtime.tasks import background
from bus.errors import PortTakenError

BACKLOG = 1024
GOODBYE_S = 2


@dataclass(frozen=True)
class Listener:
    """A socket that takes connections, and the URL of what is served there, without a slash at its end."""

    socket: socket.socket
    url: str


@contextlib.contextmanager
def listening(host: str, port: int, *, hint: str, scheme: str = "http") -> Iterator[Listener]:
    """Listens on ``port``, or a free one for 0, until the block ends.

    Raises:
        PortTakenError: something else does; ``hint`` says how to choose another.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is named because asyncio sets TCP_NODELAY only then; without it every answer waits some 40 ms for the
    # acknowledgement of the one before.
    with socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
            listener.listen(BACKLOG)
        except OSError as error:
            raise PortTakenError(f"cannot listen on {host}:{port}: {error.strerror}", hint=hint) from None
        # Who listens everywhere is reached on this machine through its loopback address.
        reached = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        reached = f"[{reached}]" if family == socket.AF_INET6 else reached
        yield Listener(listener, f"{scheme}://{reached}:{listener.getsockname()[1]}")


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: the agent's shell decides when to stop."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextlib.asynccontextmanager
async def serving(app: Any, listener: Listener, *, stop: asyncio.Event, **options: Any) -> AsyncIterator[None]:
    """Serves ``app`` until the block ends; then sets ``stop`` and says goodbye to who is connected.

    Args:
        options: of uvicorn, beside those that all agents share.
    """
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="off",
        backlog=BACKLOG,
        timeout_graceful_shutdown=GOODBYE_S,
        **options,
    )
    server = _Server(config)
    async with background(server.serve([listener.socket])) as running:
        try:
            yield
        finally:
            stop.set()
            server.should_exit = True
            await asyncio.wait({running}, timeout=2 * GOODBYE_S)
