"""Somebody who holds one token, takes tasks under many names, and never does one."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Literal

import websockets
from websockets.asyncio.client import connect

from agents.core.exchange.messages import (
    MAX_SLOTS,
    Assignment,
    Hello,
    Ping,
    Ready,
    TaskFailed,
    TaskRevoked,
    UploadBegin,
    UploadOffset,
    encode_chunk,
)
from agents.runtime.tasks import background
from tests.broker.gateway.conftest import Talk

Kind = Literal["ping", "drip", "refuse", "drop"]
KINDS: tuple[Kind, ...] = ("ping", "drip", "refuse", "drop")
PAUSE_S, DRIP_S = 0.2, 1.0


@contextlib.asynccontextmanager
async def attacked(url: str, token: str, names: int, kind: Kind, *, size: int) -> AsyncIterator[None]:
    """So many names hold what they get and ping, send a byte a second, refuse it, or drop the connection.

    Args:
        url: the gateway's WebSocket.
        token: that all come under.
        names: how many; all are welcome when this begins.
        kind: what they do.
        size: bytes of an update.
    """
    welcome = [asyncio.Event() for _ in range(names)]
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(_attack(url, token, f"bad{number}", kind, size, event))
            for number, event in enumerate(welcome)
        ]
        try:
            async with asyncio.timeout(30):
                for event in welcome:
                    await event.wait()
            yield
        finally:
            for task in tasks:
                task.cancel()


async def _attack(url: str, token: str, name: str, kind: Kind, size: int, welcome: asyncio.Event) -> None:
    while True:
        with contextlib.suppress(OSError, TimeoutError, websockets.WebSocketException):
            async with connect(url, compression=None, close_timeout=PAUSE_S) as socket:
                talk = Talk(socket)
                await talk.say(Hello(protocol=1, token=token, client=name, engine="test"))
                await talk.hear()
                welcome.set()
                async with background(_pings(talk)):
                    await _take_tasks(talk, kind, size)
        await asyncio.sleep(PAUSE_S)


async def _pings(talk: Talk) -> None:
    with contextlib.suppress(websockets.WebSocketException):
        while True:
            await talk.say(Ping())
            await asyncio.sleep(DRIP_S)


async def _take_tasks(talk: Talk, kind: Kind, size: int) -> None:
    for _ in range(MAX_SLOTS):
        await talk.say(Ready())
    uploads = 0
    while True:
        match await talk.hear():
            case TaskRevoked():
                await talk.say(Ready())
            case Assignment(lease=lease):
                if kind == "drop":
                    return
                if kind == "refuse":
                    await talk.say(TaskFailed(lease=lease, reason="no"))
                    await talk.say(Ready())
                if kind == "drip":
                    uploads += 1
                    await talk.say(UploadBegin(lease=lease, upload=uploads, size=size, sha256="0" * 64))
            case UploadOffset(upload=upload, offset=offset):
                await asyncio.sleep(DRIP_S)
                await talk.say(encode_chunk(upload, offset, b"x"))
