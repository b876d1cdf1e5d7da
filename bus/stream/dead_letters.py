"""Keeps what nobody could understand or handle, once for each message and consumer, with the reason.

The DLQ is a log like any other: that an event was given up, that somebody wants it tried again and that it was handled
then are messages of their own, and what is left to be done is a fold over them.

It is bounded, in all and by sender: of what is malformed on subjects of one type, ``FIRST`` letters have places of
their own, the newest ``NEWEST_LETTERS`` after these share a subject, and the others are counted there.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import defaultdict
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime
from weakref import WeakKeyDictionary

from nats.js.errors import APIError

from bus.broker.connection import WRONG_LAST_SEQUENCE, Connection
from bus.broker.direct_get import DirectMessage, lies_copied, read_stored, was_copied
from bus.broker.topology import DLQ_STREAM
from bus.process.logs import escaped
from bus.words.subjects import LetterSubject, is_newest, newest_letters, parse_letter_subject, sender_of

REASON, SUBJECT = "Fedbus-Reason", "Fedbus-Subject"
SEQUENCE, COUNT = "Fedbus-Sequence", "Fedbus-Count"
"""Headers of the newest letters of a flood: of which event, and the how manieth of its sender it is there."""
FIRST = 32
MAX_BODY = 4_096
"""Bytes of a message that its letter repeats: the stream has it whole."""
_ALL = ">"
_BATCH = 1_000
_STALL_S = 10.0
_AT_ONCE = 256
Key = tuple[int, str]
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
        flooded = await connection.last_message(DLQ_STREAM, newest_letters(sender)) is not None
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
        if last is not None and not was_copied(last) and _number(said, SEQUENCE) >= sequence:
            return False
        numbers = {SEQUENCE: str(sequence), COUNT: str(_number(said, COUNT) + 1)}
        place = (last.seq if last else None) or 0
        if await put_once(connection, newest_letters(sender), body, headers | numbers, replaces=place):
            return True


def _number(headers: dict[str, str], name: str) -> int:
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


async def dead_letters(connection: Connection) -> list[DeadLetter]:
    """Every message that was given up and not handled since, oldest first."""
    fold = _Fold()
    async with contextlib.aclosing(_stored(connection, _ALL)) as messages:
        async for message in messages:
            fold.take(message)
    await fold.forget_copied(connection)
    return fold.open_letters()


async def letter_at(connection: Connection, subject: LetterSubject) -> int:
    """The place on the DLQ of the newest message with this subject; 0 when there is none."""
    message = await connection.last_message(DLQ_STREAM, str(subject))
    return message.seq or 0 if message else 0


async def count_open(connection: Connection, subjects: Iterable[str]) -> int:
    """How many dead letters wait, from the subjects of the DLQ alone; reads only the broker's advisories."""
    noted = _Noted()
    unparsed = set[str]()
    for subject in subjects:
        if (letter := parse_letter_subject(subject)) is not None:
            noted.take(letter)
        else:
            unparsed.add(newest_letters() if is_newest(subject) else "$JS.EVENT.ADVISORY.>")
    given_up = set(noted.given_up)
    for filter_ in unparsed:
        async with contextlib.aclosing(_stored(connection, filter_)) as messages:
            given_up |= {(one.sequence, one.consumer) async for one in _letters(messages)}
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
        self._handled: dict[Key, int] = {}
        self._unkept: dict[str, int] = {}
        self._senders: dict[Key, str] = {}

    def take(self, message: DirectMessage) -> None:
        subject = parse_letter_subject(message.subject)
        if subject is None:
            if (letter := _newest(message) or _advisory(message)) is not None:
                key = letter.sequence, letter.consumer
                if is_newest(message.subject) and key not in self._letters:
                    self._unkept.setdefault(message.subject, max(0, _number(message.headers, COUNT) - 1))
                    self._senders[key] = message.subject
                self._letters.setdefault(key, letter)
            return
        self._noted.take(subject)
        key = subject.sequence, subject.consumer
        if subject.kind == "retry":
            self._retried[key] = message.sequence, message.time
        elif subject.kind == "handled":
            self._handled[key] = message.sequence
        else:
            self._letters[key] = _letter(subject, message)

    async def forget_copied(self, connection: Connection) -> None:
        """Takes no answer of the broker for a note that a worker handled a letter: it would hide the letter."""
        for part in range(0, len(self._handled), _AT_ONCE):
            keys = list(self._handled)[part : part + _AT_ONCE]
            copied = await asyncio.gather(*(lies_copied(connection, DLQ_STREAM, self._handled[key]) for key in keys))
            for (sequence, consumer), was in zip(keys, copied, strict=True):
                if was:
                    self._noted.handled[sequence].discard(consumer)

    def open_letters(self) -> list[DeadLetter]:
        found = [self._with_retry(one) for key, one in self._letters.items() if not self._noted.is_settled(key)]
        unkept, letters = dict(self._unkept), list[DeadLetter]()
        for one in sorted(found, key=lambda one: one.place):
            # Those that are not kept are counted at the oldest that is.
            sender = self._senders.get((one.sequence, one.consumer), "")
            letters.append(replace(one, unkept=unkept.pop(sender, 0)))
        return letters

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


def _newest(message: DirectMessage) -> DeadLetter | None:
    """A letter among the newest of a flood."""
    if not is_newest(message.subject) or not (sequence := _number(message.headers, SEQUENCE)):
        return None
    return _letter(LetterSubject("malformed", "", sequence), message)


async def _letters(messages: AsyncGenerator[DirectMessage, None]) -> AsyncGenerator[DeadLetter, None]:
    async for message in messages:
        if (letter := _newest(message) or _advisory(message)) is not None:
            yield letter


def _stored(connection: Connection, subject: str) -> AsyncGenerator[DirectMessage, None]:
    return read_stored(connection, DLQ_STREAM, subject, start=1, batch=_BATCH, stall_s=_STALL_S)
