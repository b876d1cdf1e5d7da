"""Reads stored messages of a stream in batches without a consumer (batched direct get, nats-server 2.11 and later)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import deque
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

import nats.errors
from nats.aio.msg import Msg
from nats.js.api import RawStreamMsg
from nats.js.errors import APIError, NotFoundError

from bus.broker.connection import Connection

COPIED = "Nats-Stream"
"""A header of the broker's answers. On a stored message it means that the broker wrote it there as its answer to
somebody, who chose the subject and need not be one who may publish there."""
_RETRY_S = 0.1


def was_copied(message: Msg | RawStreamMsg | None) -> bool:
    """Whether a message as it was delivered, or lies in its stream, is such an answer.

    A direct get cannot tell: its own answers all bear that header.
    """
    return message is not None and COPIED in (message.headers or {})


async def lies_copied(connection: Connection, stream: str, sequence: int) -> bool:
    """Whether the message at this place is such an answer, or gone: the leader of the stream is asked."""
    try:
        return was_copied(await connection.persist(lambda: connection.js.get_msg(stream, sequence)))
    except NotFoundError:
        return True


@dataclass(frozen=True)
class DirectMessage:
    """A stored message."""

    sequence: int
    subject: str
    time: datetime
    data: bytes
    headers: dict[str, str]


async def read_stored(
    connection: Connection, stream: str, subject: str, *, start: int, batch: int, stall_s: float
) -> AsyncGenerator[DirectMessage, None]:
    """The stored messages that match ``subject`` from sequence ``start`` on, in order; holds at most ``batch``.

    Whichever replica answers may be behind: where it ends, the stream's leader is asked for what comes next. Waits out
    lost connections and goes on where it stopped. Close it (``contextlib.aclosing``) when leaving early.

    Raises:
        TimeoutError: the broker is there, but nothing came for ``stall_s`` seconds.
    """
    request_subject = f"$JS.API.DIRECT.GET.{stream}"
    inbox = _Inbox(connection.nc.new_inbox())
    subscription = await connection.nc.subscribe(f"{inbox.prefix}.*", cb=inbox.receive)
    try:
        with connection.waking(inbox):
            deadline = time.monotonic() + stall_s
            asked_again = False
            while True:
                if not connection.is_up:
                    await connection.connected()
                    deadline = time.monotonic() + stall_s
                losses = connection.losses
                request = {"seq": start, "next_by_subj": subject, "batch": batch}
                with contextlib.suppress(nats.errors.OutboundBufferLimitError):
                    await connection.nc.publish(request_subject, json.dumps(request).encode(), inbox.renew())
                end: Msg | None = None
                while end is None and connection.losses == losses:
                    try:
                        message = await inbox.next(deadline - stall_s / 2)
                    except TimeoutError:
                        # Who was to answer may have died: another replica is asked once.
                        if asked_again:
                            message = await inbox.next(deadline)
                        else:
                            asked_again = True
                            break
                    if message is None:
                        continue
                    asked_again = False
                    headers = message.headers or {}
                    if "Nats-Sequence" not in headers:
                        end = message
                        continue
                    start = int(headers["Nats-Sequence"]) + 1
                    yield _stored(message, headers)
                    # The reader's own time does not count.
                    deadline = time.monotonic() + stall_s
                status = (end.headers or {}).get("Status") if end else None
                if status == "404" or (end and status == "204" and (end.headers or {})["Nats-Num-Pending"] == "0"):
                    ahead = await _next_at_leader(connection, stream, subject, start)
                    if ahead is None:
                        return
                    start = ahead.sequence + 1
                    yield ahead
                    deadline = time.monotonic() + stall_s
                elif end is not None and status != "204":
                    # The broker has just started and does not know its streams yet.
                    await asyncio.sleep(_RETRY_S)
                    if time.monotonic() > deadline:
                        raise TimeoutError(f"the broker answers with status {status}")
    finally:
        if not connection.nc.is_closed and not connection.nc.is_draining:
            await subscription.unsubscribe()


async def read_at_leader(
    connection: Connection, stream: str, subject: str, *, start: int
) -> AsyncGenerator[DirectMessage, None]:
    """As ``read_stored``, from the stream's leader alone: one round trip each, whatever a replica has lost."""
    while (found := await _next_at_leader(connection, stream, subject, start)) is not None:
        start = found.sequence + 1
        yield found


async def _next_at_leader(connection: Connection, stream: str, subject: str, start: int) -> DirectMessage | None:
    """The first message from ``start`` on that matches ``subject``, as the leader of the stream has it."""

    async def attempt() -> RawStreamMsg:
        return await connection.js.get_msg(stream, start, subject, next=True)

    try:
        found = await connection.persist(attempt)
    except NotFoundError:
        return None
    assert found.seq is not None
    assert found.subject is not None
    assert found.time is not None
    return DirectMessage(found.seq, found.subject, found.time, found.data or b"", dict(found.headers or {}))


@dataclass(frozen=True)
class StreamState:
    """Subjects of a stream with the number of their messages, its first and last sequence, and the broker's time."""

    subjects: dict[str, int]
    first: int
    last: int
    now: datetime


async def stream_state(connection: Connection, stream: str, filter_: str) -> StreamState:
    """The subjects that match ``filter_``, and what time it is for the broker."""
    subjects: dict[str, int] = {}
    while True:
        request = json.dumps({"subjects_filter": filter_, "offset": len(subjects)}).encode()
        info = await connection.persist(partial(_stream_info, connection, stream, request))
        page = info["state"].get("subjects") or {}
        subjects |= page
        if not page or len(subjects) >= info.get("total", 0):
            state = info["state"]
            return StreamState(subjects, state["first_seq"], state["last_seq"], datetime.fromisoformat(info["ts"]))


async def lost_sequences(connection: Connection, stream: str) -> list[int]:
    """The sequences below the newest that the stream does not have, in order, as its leader knows."""
    request = json.dumps({"deleted_details": True}).encode()
    info = await connection.persist(partial(_stream_info, connection, stream, request))
    return sorted(info["state"].get("deleted") or [])


async def _stream_info(connection: Connection, stream: str, request: bytes) -> dict[str, Any]:
    """The broker's answer, which has parts that nats-py leaves out (2.16)."""
    answer = json.loads((await connection.nc.request(f"$JS.API.STREAM.INFO.{stream}", request, timeout=5)).data)
    if "error" in answer:
        raise APIError.from_error(answer["error"])
    found: dict[str, Any] = answer
    return found


def _stored(message: Msg, headers: dict[str, str]) -> DirectMessage:
    return DirectMessage(
        sequence=int(headers["Nats-Sequence"]),
        subject=headers["Nats-Subject"],
        time=datetime.fromisoformat(headers["Nats-Time-Stamp"]),
        data=message.data,
        headers=headers,
    )


class _Inbox:
    """Messages that answer the newest request and were not read yet."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self._request = 0
        self._messages: deque[Msg] = deque()
        self._arrived = asyncio.Event()

    def renew(self) -> str:
        """The reply subject of a new request; what still comes for the one before, after a lost connection, is void."""
        self._request += 1
        self._messages.clear()
        return f"{self.prefix}.{self._request}"

    async def receive(self, message: Msg) -> None:
        if message.subject == f"{self.prefix}.{self._request}":
            self._messages.append(message)
            self._arrived.set()

    async def next(self, deadline: float) -> Msg | None:
        """The next message; nothing when woken because the connection changed."""
        if not self._messages:
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                await self._arrived.wait()
        self._arrived.clear()
        return self._messages.popleft() if self._messages else None

    def wake(self) -> None:
        self._arrived.set()
