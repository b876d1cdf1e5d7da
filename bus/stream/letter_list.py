"""Lists the dead letters: what was given up and not handled since, folded from what the DLQ says, or from its ends."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

from bus.broker.connection import Connection
from bus.broker.direct_get import DirectMessage, lies_copied, read_stored, stream_state, was_copied
from bus.broker.topology import DLQ_STREAM
from bus.stream.dead_letters import COUNT, REASON, SEQUENCE, SUBJECT, DeadLetter, letter_at, number
from bus.words.subjects import LetterKind, LetterSubject, is_newest, newest_letters, parse_letter_subject

_ALL = ">"
_BATCH = 1_000
_STALL_S = 10.0
_AT_ONCE = 256
Key = tuple[int, str]


async def dead_letters(connection: Connection) -> list[DeadLetter]:
    """Every message that was given up and not handled since, oldest first."""
    fold = _Fold()
    async with contextlib.aclosing(_stored(connection, _ALL)) as messages:
        async for message in messages:
            fold.take(message)
    await fold.forget_copied(connection)
    return fold.open_letters()


async def ends_of_dead_letters(connection: Connection, first: int, newest: int) -> tuple[list[DeadLetter], int]:
    """The first and the newest letters, oldest first, and how many there are in all: by their subjects, unread.

    Reads from both ends of the stream as far as it takes to find so many that are open.
    """
    state = await stream_state(connection, DLQ_STREAM, _ALL)
    fold = _Fold(state.subjects)
    begins, read_to, size = state.first, state.first - 1, 2 * first
    while read_to < state.last and fold.count(0, read_to) < first:
        begins, read_to, size = read_to + 1, min(state.last, read_to + size), 4 * size
        await _take_part(connection, fold, begins, read_to)
    await fold.forget_replaced(connection)
    read_from, size = state.last + 1, 2 * newest
    while read_from > read_to + 1 and fold.count(read_from, state.last) < newest:
        ends, read_from, size = read_from - 1, max(read_to + 1, read_from - size), 4 * size
        await _take_part(connection, fold, read_from, ends)
    letters = fold.open_letters()
    total = max(await count_open(connection, state.subjects), len(letters))
    return (letters if len(letters) <= first + newest else [*letters[:first], *letters[-newest:]]), total


async def _take_part(connection: Connection, fold: _Fold, start: int, end: int) -> None:
    batch = min(_BATCH, end - start + 1)
    async with contextlib.aclosing(_stored(connection, _ALL, start=start, batch=batch)) as messages:
        async for message in messages:
            if message.sequence <= end:
                fold.take(message)
            if message.sequence >= end:
                break
    await fold.look_at_notes(connection)


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
    """The letters, and what became of them.

    Args:
        subjects: of the stream with the number of their messages, where only parts of it are folded.
    """

    def __init__(self, subjects: Mapping[str, int] | None = None) -> None:
        self._letters: dict[Key, DeadLetter] = {}
        self._noted = _Noted()
        self._retried: dict[Key, tuple[int, datetime]] = {}
        self._handled: dict[Key, int] = {}
        self._counts: dict[str, int] = {}
        self._kept: Counter[str] = Counter()
        self._senders: dict[Key, str] = {}
        self._subjects = subjects
        self._looked_at: set[Key] = set()
        for subject in subjects or ():
            if (letter := parse_letter_subject(subject)) is not None:
                self._noted.take(letter)

    def take(self, message: DirectMessage) -> None:
        subject = parse_letter_subject(message.subject)
        if subject is None:
            if (letter := _newest(message) or _advisory(message)) is not None:
                key = letter.sequence, letter.consumer
                if is_newest(message.subject) and key not in self._letters:
                    self._counts[message.subject] = max(
                        self._counts.get(message.subject, 0), number(message.headers, COUNT)
                    )
                    self._kept[message.subject] += 1
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

    def count(self, start: int, end: int) -> int:
        """How many open letters there are between these places."""
        return sum(start <= one.place <= end and not self._noted.is_settled(key) for key, one in self._letters.items())

    async def look_at_notes(self, connection: Connection) -> None:
        """Learns what notes elsewhere say of the letters read so far, where the subjects tell that there are any."""
        new = [key for key in self._letters if key not in self._looked_at]
        self._looked_at.update(new)
        kinds: tuple[tuple[LetterKind, dict[int, set[str]]], ...] = (
            ("retry", self._noted.wanted),
            ("handled", self._noted.handled),
        )
        notes = [
            note
            for sequence, consumer in new
            for kind, names in kinds
            for name in ({consumer} if consumer else names.get(sequence, set()))
            if str(note := LetterSubject(kind, name, sequence)) in (self._subjects or {})
        ]
        for part in range(0, len(notes), _AT_ONCE):
            some = notes[part : part + _AT_ONCE]
            found = await asyncio.gather(*(connection.last_message(DLQ_STREAM, str(note)) for note in some))
            for note, message in zip(some, found, strict=True):
                key = note.sequence, note.consumer
                if message is None or was_copied(message):
                    (self._noted.handled if note.kind == "handled" else self._noted.wanted)[note.sequence].discard(
                        note.consumer
                    )
                elif note.kind == "retry" and message.seq and message.time:
                    self._retried[key] = message.seq, message.time

    async def forget_replaced(self, connection: Connection) -> None:
        """Drops letters that were written again since: they are read at their newer places."""
        for key, one in list(self._letters.items()):
            subject = LetterSubject("given_up" if one.consumer else "malformed", one.consumer, one.sequence)
            if (self._subjects or {}).get(str(subject), 0) > 1:
                place, _ = await letter_at(connection, subject)
                if place != one.place:
                    del self._letters[key]

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
        kept = self._kept if self._subjects is None else self._subjects
        unkept = {sender: max(0, count - kept.get(sender, 0)) for sender, count in self._counts.items()}
        letters = list[DeadLetter]()
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
    if not is_newest(message.subject) or not (sequence := number(message.headers, SEQUENCE)):
        return None
    return _letter(LetterSubject("malformed", "", sequence), message)


async def _letters(messages: AsyncGenerator[DirectMessage, None]) -> AsyncGenerator[DeadLetter, None]:
    async for message in messages:
        if (letter := _newest(message) or _advisory(message)) is not None:
            yield letter


def _stored(
    connection: Connection, subject: str, *, start: int = 1, batch: int = _BATCH
) -> AsyncGenerator[DirectMessage, None]:
    return read_stored(connection, DLQ_STREAM, subject, start=start, batch=batch, stall_s=_STALL_S)
