"""Keeps what nobody could understand or handle, once for each message, with the reason."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from datetime import datetime

from nats.js.errors import APIError

from bus.connection import Connection
from bus.direct import DirectMessage, read_stored
from bus.logs import escaped
from bus.subjects import dead_letter_subject
from bus.topology import DLQ_STREAM

WRONG_LAST_SEQUENCE = 10071
REASON, SUBJECT = "Fedbus-Reason", "Fedbus-Subject"
_ALL = ">"
_BATCH = 256
_STALL_S = 10.0


@dataclass(frozen=True)
class DeadLetter:
    """A message that was given up: its stream sequence and subject, when and why, and its bytes."""

    sequence: int
    subject: str
    time: datetime
    reason: str
    body: bytes


async def bury(connection: Connection, sequence: int, subject: str, reason: str, body: bytes) -> bool:
    """Puts the message with this stream sequence on the DLQ; false when it is there already."""

    async def attempt() -> bool:
        headers = {
            "Nats-Expected-Last-Subject-Sequence": "0",
            REASON: escaped(reason)[:1000],
            SUBJECT: subject,
        }
        try:
            await connection.js.publish(dead_letter_subject(sequence), body, stream=DLQ_STREAM, headers=headers)
        except APIError as error:
            if error.err_code != WRONG_LAST_SEQUENCE:
                raise
            return False
        return True

    return await connection.persist(attempt)


async def dead_letters(connection: Connection) -> AsyncGenerator[DeadLetter, None]:
    """Everything on the DLQ, oldest first; an event that a consumer gave up stands for its advisory."""
    stored = read_stored(connection, DLQ_STREAM, _ALL, start=1, batch=_BATCH, stall_s=_STALL_S)
    async with contextlib.aclosing(stored) as messages:
        async for message in messages:
            yield _letter(message)


def _letter(message: DirectMessage) -> DeadLetter:
    if SUBJECT in message.headers:
        sequence = int(message.subject.rsplit(".", 1)[1])
        return DeadLetter(
            sequence, message.headers[SUBJECT], message.time, message.headers.get(REASON, ""), message.data
        )
    advisory = json.loads(message.data)
    reason = f"consumer {advisory.get('consumer')} gave it up after {advisory.get('deliveries')} deliveries"
    return DeadLetter(int(advisory["stream_seq"]), message.subject, message.time, reason, message.data)
