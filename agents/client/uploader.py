"""Uploads finished updates over whatever connection the client has, from the offset that the gateway names."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable

from websockets.asyncio.client import ClientConnection

from agents.client.trainer import Finished
from agents.core.exchange.messages import (
    ServerMessage,
    UploadAccepted,
    UploadBegin,
    UploadCommit,
    UploadOffset,
    UploadRejected,
    encode_chunk,
)
from bus.process.crash_points import crash_point

CHUNK_WINDOW = 4
"""Chunks that may be under way without an answer."""


class Uploader:
    """One client's uploads; each has a number of its own, over all connections.

    ``answer_s`` is how long the gateway may take for an answer.
    """

    def __init__(self, answer_s: float) -> None:
        self._answer_s = answer_s
        self._number = 0
        self._answers: dict[int, asyncio.Queue[ServerMessage]] = {}

    def forget(self) -> None:
        """A new connection: nobody answers on the one before any more."""
        self._answers.clear()

    def hear(self, message: UploadOffset | UploadAccepted | UploadRejected) -> None:
        """Takes an answer of the gateway."""
        if (answers := self._answers.get(message.upload)) is not None:
            answers.put_nowait(message)

    async def upload(
        self,
        socket: ClientConnection,
        lease: str,
        finished: Finished,
        *,
        chunk_bytes: int,
        given_up: Callable[[], bool],
    ) -> UploadAccepted | UploadRejected | None:
        """Sends one update and returns the gateway's verdict; nothing when its task was taken back meanwhile.

        Raises:
            TimeoutError: no answer came.
            websockets.ConnectionClosed: the connection is gone; another upload of the same goes on at the offset.
        """
        self._number += 1
        number, size = self._number, len(finished.data)
        answers = self._answers[number] = asyncio.Queue()
        digest = hashlib.sha256(finished.data).hexdigest()
        await socket.send(UploadBegin(lease=lease, upload=number, size=size, sha256=digest).model_dump_json())
        answer = await self._next(answers)
        crash_point("client.upload_begun")
        sent = acknowledged = answer.offset if isinstance(answer, UploadOffset) else size
        committed = False
        while isinstance(answer, UploadOffset) and not given_up():
            acknowledged = answer.offset
            while sent < size and sent - acknowledged < CHUNK_WINDOW * chunk_bytes:
                await socket.send(encode_chunk(number, sent, finished.data[sent : sent + chunk_bytes]))
                sent = min(size, sent + chunk_bytes)
                crash_point("client.chunk_sent")
            if sent >= size and not committed:
                committed = True
                commit = UploadCommit(lease=lease, upload=number, metrics=finished.metrics)
                await socket.send(commit.model_dump_json())
                crash_point("client.committed")
            answer = await self._next(answers)
        self._answers.pop(number, None)
        return answer if isinstance(answer, UploadAccepted | UploadRejected) else None

    async def _next(self, answers: asyncio.Queue[ServerMessage]) -> ServerMessage:
        async with asyncio.timeout(self._answer_s):
            return await answers.get()
