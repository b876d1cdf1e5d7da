"""Builds and parses every subject of the bus; nothing else does.

``ev.<run>.<noun>.<verb>[.<token>…]`` for durable events and ``<type>.<token>…`` for what is not kept, with the tokens
that its class declares (``bus.words.payload``), ``dlq.<stream sequence>`` for what could not be understood and
``dlq.<given_up|retry|handled>.<consumer>.<stream sequence>`` for what a consumer could not handle,
``dlq.newest.<noun-verb>`` for the newest of what came like a flood,
``token.<id>`` for what is known of a join token, ``deleted.<upload>`` for why an upload's chunks were deleted.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import Literal

from bus.errors import MalformedEventError, MalformedSubjectError
from bus.words.payload import Live, Payload, Word, payload_of

EVENTS = "ev.>"
EVENT_STREAM = "EVENTS"
"""Name of the stream that keeps them."""
DEAD_LETTERS = "dlq.>"
ALL_TOKENS = "token.*"
ALL_DELETIONS = "deleted.*"
_TOKEN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_SEQUENCE = re.compile(r"[1-9]\d{0,18}")
_RUN_LEVEL = 4


@dataclass(frozen=True)
class EventSubject:
    """The parts of a durable event's subject; ``rest`` is what its type's tokens are, in order, as text."""

    run: str
    type: str
    rest: tuple[str, ...]


@functools.cache
def address(word: type[Word]) -> str:
    """The subject of all that is said with this class, with the name of a field in braces for each variable token."""
    head = f"ev.{{run}}.{word.TYPE}" if issubclass(word, Payload) else word.TYPE
    return ".".join([head, *(f"{{{name}}}" for name in _own_tokens(word))])


def event_subject(payload: Payload) -> str:
    """The one subject that this payload may be published on."""
    return address(type(payload)).format_map(vars(payload))


def live_subject(live: Live) -> str:
    """Where this goes to whoever listens."""
    return address(type(live)).format_map(vars(live))


def filter_of(word: type[Word], **tokens: str) -> str:
    """Filter: all that is said with this class, or what has these tokens only."""
    known = {name: checked(token) for name, token in tokens.items()}
    parts = address(word).format_map({name: known.get(name, "*") for name in word.TOKENS}).split(".")
    fixed = len(parts)
    while parts[fixed - 1] == "*":
        fixed -= 1
    return ".".join(parts[:fixed] + [">"] * (fixed < len(parts)))


def parse_event_subject(subject: str) -> EventSubject:
    """The parts of ``subject``.

    Raises:
        MalformedSubjectError: it is not the subject of a durable event that is declared.
    """
    tokens = subject.split(".")
    if len(tokens) < _RUN_LEVEL or tokens[0] != "ev" or not all(_TOKEN.fullmatch(token) for token in tokens):
        raise MalformedSubjectError(f"{subject!r} is not ev.<run>.<noun>.<verb>…")
    parts = EventSubject(tokens[1], f"{tokens[2]}.{tokens[3]}", tuple(tokens[4:]))
    try:
        payload = payload_of(parts.type)
    except MalformedEventError as error:
        raise MalformedSubjectError(f"{subject!r}: {error.message}") from None
    if len(parts.rest) != len(_own_tokens(payload)):
        raise MalformedSubjectError(f"{subject!r} is not {address(payload)}")
    return parts


def events_of(run: str) -> str:
    """Filter: every event of one run."""
    return f"ev.{checked(run)}.>"


def events_of_type(type_: str, run: str = "*") -> str:
    """Filter: every event of one type, of one run or of all."""
    return filter_of(payload_of(type_), **({} if run == "*" else {"run": run}))


def _own_tokens(word: type[Word]) -> list[str]:
    """The tokens after the type: the run of a durable event stands before it."""
    return [name for name in word.TOKENS if not (name == "run" and issubclass(word, Payload))]


LetterKind = Literal["malformed", "given_up", "retry", "handled"]
_NOTES: tuple[LetterKind, ...] = ("given_up", "retry", "handled")


@dataclass(frozen=True)
class LetterSubject:
    """What a message on the DLQ says of the event with this stream sequence, and of which durable consumer.

    Nobody could understand it (``malformed``, of no consumer), the consumer gave it up, somebody wants the consumer to
    try again, or the consumer handled it after that.
    """

    kind: LetterKind
    consumer: str
    sequence: int

    def __str__(self) -> str:
        if self.kind == "malformed":
            return f"dlq.{self.sequence}"
        return f"dlq.{self.kind}.{self.consumer}.{self.sequence}"


def parse_letter_subject(subject: str) -> LetterSubject | None:
    """The parts of a subject of the DLQ; nothing when it is none of fedbus's own."""
    match subject.split("."):
        case ["dlq", number] if _SEQUENCE.fullmatch(number):
            return LetterSubject("malformed", "", int(number))
        case ["dlq", kind, consumer, number] if kind in _NOTES and _SEQUENCE.fullmatch(number):
            return LetterSubject(kind, consumer, int(number))
    return None


def letters_of(kind: LetterKind, consumer: str = "*") -> str:
    """Filter: every message of this kind on the DLQ, of one consumer or of all."""
    if kind == "malformed":
        return "dlq.*"
    return f"dlq.{kind}.{consumer if consumer == '*' else checked(consumer)}.*"


_NEWEST = "dlq.newest."
UNDECLARED = "other"


def newest_letters(sender: str = "*") -> str:
    """Where the newest letters of one sender lie that are too many to be kept each, or filter: of all."""
    return _NEWEST + (sender if sender == "*" else checked(sender))


def is_newest(subject: str) -> bool:
    """Whether it is one of ``newest_letters``."""
    return subject.startswith(_NEWEST)


def sender_of(subject: str) -> str:
    """Who is taken to have said what is malformed on this subject: whoever may say events of its type."""
    parts = subject.split(".")
    if parts[0] != "ev" or len(parts) < _RUN_LEVEL:
        return UNDECLARED
    try:
        payload_of(f"{parts[2]}.{parts[3]}")
    except MalformedEventError:
        return UNDECLARED
    return f"{parts[2]}-{parts[3]}"


def matches(filter_: str, subject: str) -> bool:
    """Whether ``subject`` is one of those that ``filter_`` stands for, by the rules of NATS."""
    wanted, tokens = filter_.split("."), subject.split(".")
    if wanted[-1] == ">":
        wanted.pop()
        if len(tokens) <= len(wanted):
            return False
        tokens = tokens[: len(wanted)]
    return len(wanted) == len(tokens) and all(one in ("*", token) for one, token in zip(wanted, tokens, strict=True))


def token_subject(name: str) -> str:
    """Where the record of the join token with this id is kept."""
    return f"token.{checked(name)}"


def deletion_subject(upload: str) -> str:
    """Where it is kept why the chunks of this upload were deleted."""
    return f"deleted.{checked(upload.replace('.', '-'))}"


def upload_name(role: str | None, unique: str) -> str:
    """The name of an upload, under which its chunks lie: a role may write only where its own name stands first."""
    return f"{checked(role)}.{unique}" if role else unique


def checked(token: str) -> str:
    """``token`` itself when it is safe as one token of a subject.

    Raises:
        MalformedSubjectError: it is empty, too long (64), or has a character besides letters, digits, ``-`` and ``_``.
    """
    if not _TOKEN.fullmatch(token):
        raise MalformedSubjectError(
            f"{token!r} cannot be a name",
            hint="use 1 to 64 letters, digits, '-' and '_', beginning with a letter or digit",
        )
    return token
