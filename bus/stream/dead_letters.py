"""Keeps what nobody could understand or handle, once for each message and consumer, with the reason.

The DLQ is a log like any other: that an event was given up, that somebody wants it tried again and that it was handled
then are messages of their own, and what is left to be done is a fold over them.
"""

from __future__ import annotations

import contextlib
import json
from collections import defaultdict
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime

from nats.js.errors import APIError

from bus.broker.connection import WRONG_LAST_SEQUENCE, Connection
from bus.broker.direct_get import DirectMessage, read_stored
from bus.broker.topology import DLQ_STREAM
from bus.process.logs import escaped
from bus.words.subjects import LetterSubject, parse_letter_subject

REASON, SUBJECT = "Fedbus-Reason", "Fedbus-Subject"
_ALL = ">"
_BATCH = 256
_STALL_S = 10.0
Key = tuple[int, str]


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
    """

    sequence: int
    subject: str
    time: datetime
    reason: str
    body: bytes
    consumer: str = ""
    place: int = 0
    retry_at: datetime | None = None


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
    return await put_once(connection, letter, body, headers, replaces=replaces)


async def put_once(
    connection: Connection, letter: LetterSubject, body: bytes, headers: dict[str, str] | None = None, *, replaces: int
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


async def dead_letters(connection: Connection) -> list[DeadLetter]:
    """Every message that was given up and not handled since, oldest first."""
    fold = _Fold()
    async with contextlib.aclosing(_stored(connection, _ALL)) as messages:
        async for message in messages:
            fold.take(message)
    return fold.open_letters()


async def letter_at(connection: Connection, subject: LetterSubject) -> int:
    """The place on the DLQ of the newest message with this subject; 0 when there is none."""
    message = await connection.last_message(DLQ_STREAM, str(subject))
    return message.seq or 0 if message else 0


async def count_open(connection: Connection, subjects: Iterable[str]) -> int:
    """How many dead letters wait, from the subjects of the DLQ alone; reads only the broker's advisories."""
    noted = _Noted()
    advisories = False
    for subject in subjects:
        if (letter := parse_letter_subject(subject)) is not None:
            noted.take(letter)
        advisories = advisories or letter is None
    given_up = set(noted.given_up)
    if advisories:
        async with contextlib.aclosing(_stored(connection, "$JS.EVENT.ADVISORY.>")) as messages:
            given_up |= {(one.sequence, one.consumer) async for one in _advisories(messages)}
    return sum(not noted.is_settled(key) for key in given_up)


@dataclass
class _Noted:
    """What was said of which event and consumer, whenever that was."""

    given_up: set[Key] = field(default_factory=set)
    wanted: dict[int, set[str]] = field(default_factory=lambda: defaultdict(set))
    handled: dict[int, set[str]] = field(default_factory=lambda: defaultdict(set))

    def take(self, letter: LetterSubject) -> None:
        match letter.kind:
            case "retry":
                self.wanted[letter.sequence].add(letter.consumer)
            case "handled":
                self.handled[letter.sequence].add(letter.consumer)
            case _:
                self.given_up.add((letter.sequence, letter.consumer))

    def is_settled(self, key: Key) -> bool:
        """Its consumer handled it after all; for what nobody understood, all that were asked to try again did."""
        sequence, consumer = key
        handled = self.handled.get(sequence, set())
        if consumer:
            return consumer in handled
        wanted = self.wanted.get(sequence, set())
        return bool(wanted) and wanted <= handled


class _Fold:
    """The letters, and what became of them."""

    def __init__(self) -> None:
        self._letters: dict[Key, DeadLetter] = {}
        self._noted = _Noted()
        self._retried: dict[Key, tuple[int, datetime]] = {}

    def take(self, message: DirectMessage) -> None:
        subject = parse_letter_subject(message.subject)
        if subject is None:
            if (advisory := _advisory(message)) is not None:
                self._letters.setdefault((advisory.sequence, advisory.consumer), advisory)
            return
        self._noted.take(subject)
        key = subject.sequence, subject.consumer
        if subject.kind == "retry":
            self._retried[key] = message.sequence, message.time
        elif subject.kind != "handled":
            self._letters[key] = _letter(subject, message)

    def open_letters(self) -> list[DeadLetter]:
        found = [self._with_retry(one) for key, one in self._letters.items() if not self._noted.is_settled(key)]
        return sorted(found, key=lambda one: one.place)

    def _with_retry(self, letter: DeadLetter) -> DeadLetter:
        consumers = {letter.consumer} if letter.consumer else self._noted.wanted.get(letter.sequence, set())
        asked = [self._retried[key] for one in consumers if (key := (letter.sequence, one)) in self._retried]
        place, time = max(asked, default=(0, None))
        return replace(letter, retry_at=time) if place > letter.place else letter


def _letter(subject: LetterSubject, message: DirectMessage) -> DeadLetter:
    return DeadLetter(
        subject.sequence,
        message.headers.get(SUBJECT, ""),
        message.time,
        message.headers.get(REASON, ""),
        message.data,
        subject.consumer,
        message.sequence,
    )


def _advisory(message: DirectMessage) -> DeadLetter | None:
    """The letter that the broker's advisory stands for: a worker ended again and again with the event in its hands.

    Nothing when it is none of the broker's: whatever else somebody put on the DLQ is not about an event.
    """
    if not message.subject.startswith("$JS."):
        return None
    try:
        fields = json.loads(message.data)
        sequence, consumer = int(fields["stream_seq"]), str(fields["consumer"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
    reason = f"consumer {consumer} gave it up after {fields.get('deliveries')} deliveries"
    return DeadLetter(sequence, message.subject, message.time, reason, message.data, consumer, message.sequence)


async def _advisories(messages: AsyncGenerator[DirectMessage, None]) -> AsyncGenerator[DeadLetter, None]:
    async for message in messages:
        if (letter := _advisory(message)) is not None:
            yield letter


def _stored(connection: Connection, subject: str) -> AsyncGenerator[DirectMessage, None]:
    return read_stored(connection, DLQ_STREAM, subject, start=1, batch=_BATCH, stall_s=_STALL_S)
