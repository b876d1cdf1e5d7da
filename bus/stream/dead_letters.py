"""Keeps what nobody could understand or handle, once for each message and consumer, with the reason.

The DLQ is a log like any other: that an event was given up, that somebody wants it tried again and that it was handled
then are messages of their own, and what is left to be done is a fold over them (``letter_list``).

It is bounded, in all and by sender: of what is malformed on subjects of one type, ``FIRST`` letters have places of
their own, the newest ``NEWEST_LETTERS`` after these share a subject, and the others are counted there.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from weakref import WeakKeyDictionary

from nats.js.api import RawStreamMsg
from nats.js.errors import APIError, NotFoundError

from bus.broker.answers import WRONG_LAST_SEQUENCE
from bus.broker.connection import Connection
from bus.broker.direct_get import was_copied
from bus.broker.topology import DLQ_STREAM
from bus.process.logs import escaped
from bus.words.subjects import EVENT_STREAM, LetterSubject, newest_letters, sender_of

REASON, SUBJECT = "Fedbus-Reason", "Fedbus-Subject"
SEQUENCE, COUNT = "Fedbus-Sequence", "Fedbus-Count"
"""Headers of the newest letters of a flood: of which event, and the how manieth of its sender it is there."""
FIRST = 32
MAX_BODY = 4_096
"""Bytes of a message that its letter repeats: the stream has it whole."""
_placed: WeakKeyDictionary[Connection, dict[str, set[int]]] = WeakKeyDictionary()
"""Of each sender, the events for which a connection found places of their own, new or old; nothing where earlier ones
took them all."""


@dataclass(frozen=True)
class DeadLetter:
    """A message that was given up and not handled since.

    Attributes:
        sequence: its place in the event stream.
        subject: its subject there; for an event whose worker kept ending, that of the broker's advisory.
        time: when it was given up.
        reason: why.
        body: its bytes; for an event whose worker kept ending, those of the advisory.
        consumer: the durable consumer that could not handle it; empty when nobody could understand it.
        place: where the DLQ has it.
        retry_at: when somebody asked for another try of it, if it has not come to an end.
        unkept: how many letters of its sender came before it that were counted and not kept.
    """

    sequence: int
    subject: str
    time: datetime
    reason: str
    body: bytes
    consumer: str = ""
    place: int = 0
    retry_at: datetime | None = None
    unkept: int = 0


async def bury(
    connection: Connection,
    sequence: int,
    subject: str,
    reason: str,
    body: bytes,
    *,
    consumer: str = "",
    replaces: int = 0,
) -> bool:
    """Puts the message with this stream sequence on the DLQ; false when it is there already.

    Args:
        consumer: the durable consumer that could not handle it; empty for what nobody can understand.
        replaces: the letter's place on the DLQ when the message was given up before and tried again since.
    """
    letter = LetterSubject("given_up" if consumer else "malformed", consumer, sequence)
    headers = {REASON: escaped(reason)[:1000], SUBJECT: subject}
    if not consumer and not await _has_place(connection, sender_of(subject), sequence):
        return await _put_newest(connection, sender_of(subject), sequence, body[:MAX_BODY], headers)
    return await put_once(connection, letter, body[:MAX_BODY], headers, replaces=replaces)


async def _has_place(connection: Connection, sender: str, sequence: int) -> bool:
    """Whether the letter gets a place of its own, as the first ones of its sender do."""
    placed = _placed.setdefault(connection, {})
    if sender not in placed:
        last = await connection.last_message(DLQ_STREAM, newest_letters(sender))
        flooded = last is not None and not was_copied(last)
        # What is below every sequence fills the set.
        placed[sender] = set(range(-FIRST, 0)) if flooded else set()
    if sequence not in placed[sender] and len(placed[sender]) >= FIRST:
        return False
    placed[sender].add(sequence)
    return True


async def _put_newest(connection: Connection, sender: str, sequence: int, body: bytes, headers: dict[str, str]) -> bool:
    """Keeps the letter among the newest of its sender, unless that one or a newer is there."""
    while True:
        last = await connection.last_message(DLQ_STREAM, newest_letters(sender))
        said = dict((last.headers if last else None) or {})
        if number(said, SEQUENCE) >= sequence:
            if await _is_letter(connection, sender, last):
                return False
            # Whoever may write letters can write a false one. It silences nobody.
            said = {}
        numbers = {SEQUENCE: str(sequence), COUNT: str(number(said, COUNT) + 1)}
        place = (last.seq if last else None) or 0
        if await put_once(connection, newest_letters(sender), body, headers | numbers, replaces=place):
            return True


async def _is_letter(connection: Connection, sender: str, message: RawStreamMsg | None) -> bool:
    """Whether a letter among the newest is of an event that there is, and of its sender."""
    headers = dict((message.headers if message else None) or {})
    if message is None or was_copied(message):
        return False
    try:
        found = await connection.persist(lambda: connection.js.get_msg(EVENT_STREAM, number(headers, SEQUENCE)))
    except NotFoundError:
        return False
    return sender_of(found.subject or "") == sender and (found.data or b"")[:MAX_BODY] == (message.data or b"")


def number(headers: dict[str, str], name: str) -> int:
    """What a header says; 0 when that is no number."""
    text = headers.get(name, "")
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 19 else 0


async def put_once(
    connection: Connection,
    letter: LetterSubject | str,
    body: bytes,
    headers: dict[str, str] | None = None,
    *,
    replaces: int,
) -> bool:
    """Writes a message of the DLQ where ``replaces`` is the last of its subject (0: none); false if it is not."""

    async def attempt() -> bool:
        expected = {"Nats-Expected-Last-Subject-Sequence": str(replaces)}
        try:
            await connection.js.publish(str(letter), body, stream=DLQ_STREAM, headers=expected | (headers or {}))
        except APIError as error:
            if error.err_code != WRONG_LAST_SEQUENCE:
                raise
            return False
        return True

    return await connection.persist(attempt)


async def letter_at(connection: Connection, subject: LetterSubject) -> tuple[int, bool]:
    """The place on the DLQ of the newest message with this subject, 0 without any, and whether it says anything.

    What the broker copied there has a place, which the next message has to name, and says nothing.
    """
    message = await connection.last_message(DLQ_STREAM, str(subject))
    return (message.seq or 0 if message else 0), message is not None and not was_copied(message)
