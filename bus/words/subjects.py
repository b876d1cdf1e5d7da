"""Builds and parses every subject of the bus; nothing else does.

``ev.<run>.<noun>.<verb>[.<round>[.<user>[.<attempt>]]]`` for durable events, ``progress.<run>.<round>.<user>`` and
``hb.<role>.<id>`` for what is not kept, ``dlq.<stream sequence>`` for what could not be understood and
``dlq.<given_up|retry|handled>.<consumer>.<stream sequence>`` for what a consumer could not handle,
``token.<id>`` for what is known of a join token.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from agents.words.events import (
    ImagesLabelled,
    Payload,
    Progress,
    RoundExtended,
    RoundPayload,
    UpdateRejected,
    UserPayload,
)
from bus.errors import MalformedSubjectError

EVENTS = "ev.>"
DEAD_LETTERS = "dlq.>"
ALL_TOKENS = "token.*"
_TOKEN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_SEQUENCE = re.compile(r"[1-9]\d{0,18}")
_RUN_LEVEL = 4


@dataclass(frozen=True)
class EventSubject:
    """The parts of a durable event's subject; ``rest`` is the round, user or attempt in order, as text."""

    run: str
    type: str
    rest: tuple[str, ...]


def event_subject(payload: Payload) -> str:
    """The one subject that this payload may be published on."""
    tokens: list[str] = ["ev", payload.run, *payload.TYPE.split(".")]
    if isinstance(payload, ImagesLabelled):
        tokens.append(payload.user)
    if isinstance(payload, RoundPayload):
        tokens.append(str(payload.round))
    if isinstance(payload, UserPayload):
        tokens.append(payload.user)
    if isinstance(payload, UpdateRejected):
        tokens.append(payload.attempt)
    if isinstance(payload, RoundExtended):
        tokens.append(str(payload.extension))
    return ".".join(tokens)


def parse_event_subject(subject: str) -> EventSubject:
    """The parts of ``subject``.

    Raises:
        MalformedSubjectError: it is not the subject of a durable event.
    """
    tokens = subject.split(".")
    if len(tokens) < _RUN_LEVEL or tokens[0] != "ev" or not all(_TOKEN.fullmatch(token) for token in tokens):
        raise MalformedSubjectError(f"{subject!r} is not ev.<run>.<noun>.<verb>…")
    return EventSubject(tokens[1], f"{tokens[2]}.{tokens[3]}", tuple(tokens[4:]))


def events_of(run: str) -> str:
    """Filter: every event of one run."""
    return f"ev.{checked(run)}.>"


def events_of_type(type_: str, run: str = "*") -> str:
    """Filter: every event of one type, of one run or of all."""
    suffix = "" if type_ in ("run.started", "run.finished") else ".>"
    return f"ev.{run if run == '*' else checked(run)}.{type_}{suffix}"


def progress_subject(progress: Progress) -> str:
    """Where a task's live progress goes."""
    return f"progress.{progress.run}.{progress.round}.{progress.user}"


def progress_of(run: str) -> str:
    """Filter: the live progress of one run."""
    return f"progress.{checked(run)}.>"


def heartbeat_subject(role: str, id_: str) -> str:
    """Where an agent's heartbeats go."""
    return f"hb.{checked(role)}.{checked(id_)}"


def heartbeats_of(role: str) -> str:
    """Filter: the heartbeats of one role."""
    return f"hb.{checked(role)}.>"


HEARTBEATS = "hb.>"
LIVE_PROGRESS = "progress.>"


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
