"""The WebSocket at ``/ws``: moves frames between a connection and the conversation, and notices silence."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from urllib.parse import urlsplit
from weakref import WeakValueDictionary

from starlette.websockets import WebSocket, WebSocketDisconnect

from agents.core.exchange.answers import CROWDED, Farewell
from agents.core.exchange.connections import Connection
from agents.gateway.access import address_of
from agents.gateway.hub import Hub
from agents.gateway.outbox import Outbox
from agents.gateway.shares import LEAST_S, Shares
from agents.runtime.tasks import background

log = logging.getLogger(__name__)
FAREWELL_S = 5.0
MAX_STRANGERS = 1_024
ROUNDS = 4
"""Of the event loop, from bytes that wait in a socket to a message that was read."""


class Strangers:
    """Those who have not said hello: at most ``limit``, which keep no room from those with a token.

    One more takes the place of the one that ``Shares`` names, or waits for it, in order: hello needs but a moment.
    """

    def __init__(self, limit: int, least_s: float) -> None:
        self._limit = limit
        self._least_s = least_s
        self._waiting: Shares[asyncio.Event] = Shares()
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def enter(self, address: str) -> asyncio.Event:
        """A connection has a place when this returns, until what it returns is set."""
        turn = self._turns.setdefault(address, asyncio.Lock())
        async with turn:
            while len(self._waiting) >= self._limit:
                next_ = self._waiting.next_to_go(self._waiting.held(address), self._least_s)
                assert next_ is not None
                out, of, wait_s = next_
                if wait_s > 0:
                    await asyncio.sleep(wait_s)
                else:
                    self._waiting.leave(out, of)
                    out.set()
        place = asyncio.Event()
        self._waiting.enter(place, address)
        return place

    def leave(self, place: asyncio.Event, address: str) -> None:
        """It has said hello and was let in, or is gone."""
        self._waiting.leave(place, address)


class ClientSocket:
    """The endpoint."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._strangers = Strangers(min(MAX_STRANGERS, hub.settings.max_connections // 2), LEAST_S)

    async def __call__(self, socket: WebSocket) -> None:
        """Serves one connection to its end."""
        settings, address = self._hub.settings, address_of(socket.scope)
        if not origin_allowed(socket, settings.origins):
            await socket.close(1008)
            return
        out = await self._strangers.enter(address)
        connection: Connection | None = None
        try:
            await socket.accept()
            outbox = Outbox()
            connection = self._hub.connect(outbox, address)
            async with background(_write(socket, outbox)):
                if await self._introduced(socket, connection, out):
                    self._strangers.leave(out, address)
                    await self._read(socket, connection)
        except WebSocketDisconnect:
            # The writer met a connection that was gone.
            pass
        finally:
            self._strangers.leave(out, address)
            if connection is not None:
                self._hub.disconnect(connection)

    async def _introduced(self, socket: WebSocket, connection: Connection, out: asyncio.Event) -> bool:
        """Reads until hello was welcome; there is one time for that, whatever else is said."""
        reading = asyncio.create_task(self._read(socket, connection, until_welcome=True))
        leaving = asyncio.create_task(out.wait())
        try:
            within = self._hub.patience_s(connection)
            await asyncio.wait({reading, leaving}, timeout=within, return_when=asyncio.FIRST_COMPLETED)
            if out.is_set():
                # A hello that has come counts: what lies in the socket is read, and a token under way is looked at.
                for _ in range(ROUNDS):
                    await asyncio.sleep(0)
                while connection.busy and not reading.done():
                    await asyncio.wait({reading}, timeout=LEAST_S)
        finally:
            ended = reading.done()
            for task in (reading, leaving):
                task.cancel()
            await asyncio.wait({reading, leaving})
        if ended:
            return reading.result()
        if out.is_set():
            with contextlib.suppress(RuntimeError):
                await socket.close(*CROWDED)
        else:
            await self._say_silent(socket, connection)
        return False

    async def _read(self, socket: WebSocket, connection: Connection, *, until_welcome: bool = False) -> bool:
        """Takes in what comes: until the end, or as long as the client is a stranger; whether it is welcome then."""
        while not (until_welcome and connection.welcomed):
            try:
                async with asyncio.timeout(None if until_welcome else self._hub.patience_s(connection)):
                    event = await socket.receive()
            except TimeoutError:
                await self._say_silent(socket, connection)
                return False
            if event["type"] == "websocket.disconnect":
                return False
            text = event.get("text")
            frame = text if text is not None else event.get("bytes") or b""
            if wait_s := await self._hub.receive(connection, frame):
                await asyncio.sleep(wait_s)
        return True

    async def _say_silent(self, socket: WebSocket, connection: Connection) -> None:
        self._hub.silent(connection)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FAREWELL_S):
                await _until_gone(socket)


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
