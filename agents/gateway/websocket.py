"""The WebSocket at ``/ws``: moves frames between a connection and its session, and watches the clock."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from urllib.parse import urlsplit

from starlette.websockets import WebSocket, WebSocketDisconnect

from agents.core.exchange.access import AccessRefusedError
from agents.gateway.access import address_of
from agents.gateway.commits import Committer
from agents.gateway.hub import Hub
from agents.gateway.outbox import Farewell, Outbox
from agents.gateway.session import Session
from agents.runtime.tasks import background

log = logging.getLogger(__name__)
HELLO_S = 5.0
SILENT_HEARTBEATS = 3
SPARE_CONNECTIONS = 64


class ClientSocket:
    """The endpoint; counts its connections, welcomed or not."""

    def __init__(self, hub: Hub, committer: Committer) -> None:
        self._hub = hub
        self._committer = committer
        self._open = 0

    async def __call__(self, socket: WebSocket) -> None:
        """Serves one connection to its end."""
        settings, address = self._hub.settings, address_of(socket.scope)
        try:
            self._hub.access.refuse_guessers(address)
        except AccessRefusedError:
            await socket.close(1008)
            return
        if not origin_allowed(socket, settings.origins) or self._open >= settings.max_clients + SPARE_CONNECTIONS:
            await socket.close(1008)
            return
        await socket.accept()
        outbox = Outbox()
        session = Session(self._hub, self._committer, outbox, address)
        self._open += 1
        try:
            async with background(_write(socket, outbox)):
                await self._read(socket, session, outbox)
        except WebSocketDisconnect:
            # The writer met a connection that was gone.
            pass
        finally:
            self._open -= 1
            session.close()

    async def _read(self, socket: WebSocket, session: Session, outbox: Outbox) -> None:
        while True:
            patience = SILENT_HEARTBEATS * self._hub.settings.heartbeat_s if session.welcomed else HELLO_S
            try:
                async with asyncio.timeout(patience):
                    event = await socket.receive()
            except TimeoutError:
                outbox.close(1008, "silence" if session.welcomed else "no hello")
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(HELLO_S):
                        await _until_gone(socket)
                return
            if event["type"] == "websocket.disconnect":
                return
            text = event.get("text")
            message = text if text is not None else event.get("bytes") or b""
            await session.receive(message)
            # Who sends too much is read more slowly; the bytes wait on the client's side.
            if wait_s := session.delay(len(message)):
                await asyncio.sleep(wait_s)


async def _until_gone(socket: WebSocket) -> None:
    while (await socket.receive())["type"] != "websocket.disconnect":
        pass


async def _write(socket: WebSocket, outbox: Outbox) -> None:
    while True:
        message = await outbox.next()
        try:
            if isinstance(message, Farewell):
                await socket.close(message.code, message.reason)
                return
            await socket.send_text(message.model_dump_json())
        except RuntimeError as error:
            # The protocol below has closed the connection by itself, for a frame too large or broken.
            raise WebSocketDisconnect(1006) from error


def origin_allowed(socket: WebSocket, allowed: tuple[str, ...]) -> bool:
    """Whether a page of this origin may connect: the gateway's own, or one that the operator named.

    Programs that are no browsers send no origin; the join token is what keeps strangers out.
    """
    origin = socket.headers.get("origin")
    if origin is None or origin in allowed:
        return True
    return urlsplit(origin).netloc == socket.headers.get("host") and origin.startswith(("http://", "https://"))
