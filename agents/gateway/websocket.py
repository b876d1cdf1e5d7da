"""The WebSocket at ``/ws``: moves frames between a connection and the conversation, and notices silence."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from urllib.parse import urlsplit

from starlette.websockets import WebSocket, WebSocketDisconnect

from agents.core.exchange.access import AccessRefusedError
from agents.core.exchange.connections import Connection
from agents.gateway.access import address_of
from agents.gateway.hub import Hub
from agents.gateway.outbox import Farewell, Outbox
from agents.runtime.tasks import background

log = logging.getLogger(__name__)
FAREWELL_S = 5.0
SPARE_CONNECTIONS = 64


class ClientSocket:
    """The endpoint; counts its connections, welcomed or not."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
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
        connection = self._hub.connect(outbox, address)
        self._open += 1
        try:
            async with background(_write(socket, outbox)):
                await self._read(socket, connection)
        except WebSocketDisconnect:
            # The writer met a connection that was gone.
            pass
        finally:
            self._open -= 1
            self._hub.disconnect(connection)

    async def _read(self, socket: WebSocket, connection: Connection) -> None:
        while True:
            try:
                async with asyncio.timeout(self._hub.patience_s(connection)):
                    event = await socket.receive()
            except TimeoutError:
                self._hub.silent(connection)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(FAREWELL_S):
                        await _until_gone(socket)
                return
            if event["type"] == "websocket.disconnect":
                return
            text = event.get("text")
            frame = text if text is not None else event.get("bytes") or b""
            if wait_s := await self._hub.receive(connection, frame):
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
