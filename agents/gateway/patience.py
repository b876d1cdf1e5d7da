"""uvicorn's protocols with bounds on what a slow or greedy peer may hold: sockets, requests and unread answers."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets import exceptions
from websockets.frames import DATA_OPCODES, Frame

from agents.gateway.shares import LEAST_S, Shares

log = logging.getLogger(__name__)
NO_REQUEST, NOT_READ, NO_ROOM = "no request came", "what it asked for is not read", "others need its place"
MAX_UNREAD_PONGS = 1 << 17
"""Bytes that may wait in front of a pong."""
FRAMES_PER_S, FRAMES_AT_ONCE = 2_000.0, 4_000
"""Of one WebSocket, of every kind and size: an empty one has six bytes and costs as much as a full one."""
GOODBYE_S = 2.0
"""For the answer to the gateway's goodbye, before the socket is closed without one."""
MAX_FRAGMENTS = 1_024
"""Frames of one message."""


@dataclass(frozen=True)
class Patience:
    """How long and how many.

    Attributes:
        request_s: from a connection, or from the first byte of a later request, to the end of the request's head.
        stall_s: how long a peer may take nothing of what waits for it.
        connections: open sockets of all kinds; for one more another one goes, by ``Room``, or it is cut at once.
    """

    request_s: float
    stall_s: float
    connections: int


class _Deadline:
    """Cuts a connection, saying ``why``, unless it is lifted in time."""

    def __init__(self, why: str) -> None:
        self._why = why
        self._timer: asyncio.TimerHandle | None = None

    def set(self, after_s: float, transport: asyncio.Transport) -> None:
        """Counts from now; one that is set already stays."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(after_s, self._cut, transport)

    def _cut(self, transport: asyncio.Transport) -> None:
        log.debug("cut a connection: %s", self._why)
        transport.abort()

    def lift(self) -> None:
        """Forgets it."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class _Counted:
    """Ends a WebSocket, with the protocol's own error, for too many frames."""

    def __init__(self, take: Callable[[Frame], None]) -> None:
        self._take = take
        self._left, self._at = float(FRAMES_AT_ONCE), time.monotonic()
        self._fragments = 0

    def take(self, frame: Frame) -> None:
        """Takes one in.

        Raises:
            ProtocolError: it is one too many.
        """
        now = time.monotonic()
        self._left = min(FRAMES_AT_ONCE, self._left + (now - self._at) * FRAMES_PER_S) - 1
        self._at = now
        if frame.opcode in DATA_OPCODES:
            self._fragments = 0 if frame.fin else self._fragments + 1
        if self._left < 0 or self._fragments > MAX_FRAGMENTS:
            raise exceptions.ProtocolError("too many frames")
        self._take(frame)


class Room:
    """The sockets that may be cut so that somebody else gets in.

    First go those on which no request is: that never sent one, or only its beginning, or have had their answer. Then,
    only for an address that has fewer, those whose request is being answered or whose WebSocket is not open yet.
    Whoever has an open WebSocket stays: who has not said hello there is bounded by ``Strangers``.
    """

    def __init__(self) -> None:
        self._idle: Shares[asyncio.Transport] = Shares()
        self._served: Shares[asyncio.Transport] = Shares()
        self._places: dict[asyncio.Transport, tuple[Shares[asyncio.Transport], str]] = {}

    def idle(self, transport: asyncio.Transport) -> None:
        """The next request of this socket is waited for."""
        self._enter(self._idle, transport)

    def served(self, transport: asyncio.Transport) -> None:
        """It has sent one."""
        self._enter(self._served, transport)

    def _enter(self, shares: Shares[asyncio.Transport], transport: asyncio.Transport) -> None:
        self.leave(transport)
        address = _address(transport)
        shares.enter(transport, address)
        self._places[transport] = shares, address

    def leave(self, transport: asyncio.Transport) -> None:
        """It is gone, or stays."""
        if (place := self._places.pop(transport, None)) is not None:
            shares, address = place
            shares.leave(transport, address)

    def make(self, newcomer: asyncio.Transport) -> bool:
        """Cuts somebody for a newcomer; whether that was possible."""
        address = _address(newcomer)
        held = self._idle.held(address) + self._served.held(address)
        for shares, least_s in ((self._idle, LEAST_S), (self._served, math.inf)):
            match shares.next_to_go(held, least_s):
                case (transport, _, 0.0):
                    self.leave(transport)
                    log.debug("cut a connection: %s", NO_ROOM)
                    transport.abort()
                    return True
        return False


def _address(transport: asyncio.Transport) -> str:
    peer = transport.get_extra_info("peername")
    return str(peer[0]) if peer else "unknown"


def patient_protocols(patience: Patience) -> tuple[type[H11Protocol], type[WebSocketsSansIOProtocol]]:
    """uvicorn's protocol classes for HTTP and WebSocket with these bounds."""
    room = Room()

    class Read(asyncio.Protocol):
        """Cuts a peer that takes nothing of what waits for it; stands before one of uvicorn's classes."""

        transport: asyncio.Transport

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self._reader = _Deadline(NOT_READ)
            super().connection_made(transport)

        def pause_writing(self) -> None:
            self._reader.set(patience.stall_s, self.transport)
            super().pause_writing()

        def resume_writing(self) -> None:
            self._reader.lift()
            super().resume_writing()

        def connection_lost(self, exc: Exception | None) -> None:
            self._reader.lift()
            super().connection_lost(exc)

    class PatientHttp(Read, H11Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self._request = _Deadline(NO_REQUEST)
            super().connection_made(transport)
            if len(self.connections) > patience.connections and not room.make(self.transport):
                self.transport.abort()
                return
            room.idle(self.transport)
            self._request.set(patience.request_s, self.transport)

        def data_received(self, data: bytes) -> None:
            before = self.cycle
            if before is None or before.response_complete:
                self._request.set(patience.request_s, self.transport)
            super().data_received(data)
            # A request has begun, or the connection is a WebSocket from now on.
            if self.transport.get_protocol() is not self:
                self._request.lift()
            elif self.cycle is not before:
                self._request.lift()
                if not self.cycle.response_complete:
                    room.served(self.transport)

        def on_response_complete(self) -> None:
            before = self.cycle
            super().on_response_complete()
            # What came with the request, or behind it, may have begun another.
            if self.cycle is before and self.transport.get_protocol() is self and not self.transport.is_closing():
                room.idle(self.transport)

        def send_400_response(self, msg: str) -> None:
            # What follows a request is no request: where an answer to that one is under way, nothing else can be said.
            if self.cycle is not None and not self.cycle.response_complete:
                self.cycle.disconnected = True
                self.cycle.message_event.set()
            if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                super().send_400_response(msg)
            else:
                self.transport.close()

        def connection_lost(self, exc: Exception | None) -> None:
            self._request.lift()
            room.leave(self.transport)
            super().connection_lost(exc)

    class PatientWebSocket(Read, WebSocketsSansIOProtocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            room.served(self.transport)
            self.close_timeout = GOODBYE_S
            counted = _Counted(self.conn.recv_frame)
            # Where a read's frames are taken apart: later they have all been paid for.
            self.conn.recv_frame = counted.take  # type: ignore[method-assign]

        def handle_ping(self) -> None:
            # Pongs are written without waiting: who pings and never reads them would fill the memory.
            if self.transport.get_write_buffer_size() > MAX_UNREAD_PONGS:
                self.transport.abort()
                return
            super().handle_ping()

        async def send(self, message: Any) -> None:
            await super().send(message)
            if self.handshake_complete:
                room.leave(self.transport)

        def connection_lost(self, exc: Exception | None) -> None:
            room.leave(self.transport)
            super().connection_lost(exc)

    return PatientHttp, PatientWebSocket
