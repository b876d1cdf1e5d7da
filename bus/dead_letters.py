"""Keeps what nobody could understand or handle, once for each message, with the reason."""

from __future__ import annotations

from nats.js.errors import APIError

from bus.connection import Connection
from bus.logs import escaped
from bus.subjects import dead_letter_subject
from bus.topology import DLQ_STREAM

WRONG_LAST_SEQUENCE = 10071
REASON, SUBJECT = "Fedbus-Reason", "Fedbus-Subject"


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
