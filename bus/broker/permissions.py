"""What each role may say: users for the broker's config, so that a taken-over agent cannot speak for another.

An agent may publish only what its declaration lets it say (``bus.words.payload``), and give up only what it could not
handle itself. Every role may read the
stream, keep consumers on it, and put and read objects, which are safe to share because every reader checks their
digest. Only ``cli``, the operator, may make or change streams, and give dead letters back.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping

from bus.broker.topology import BUCKET, DLQ_STREAM, OBJECT_STREAM, TOKEN_STREAM
from bus.words.payload import GATEWAY, OPERATOR, live_words, roles, words_of
from bus.words.subjects import ALL_TOKENS, EVENT_STREAM, EVENTS, filter_of, letters_of

_API = "$JS.API"
_SHARED = (
    f"{_API}.STREAM.INFO.*",
    *(
        f"{_API}.CONSUMER.{verb}.{EVENT_STREAM}.>"
        for verb in ("CREATE", "DURABLE.CREATE", "MSG.NEXT", "INFO", "DELETE")
    ),
    f"$JS.ACK.{EVENT_STREAM}.>",
    *(
        f"{_API}.DIRECT.GET.{stream}{rest}"
        for stream in (EVENT_STREAM, OBJECT_STREAM, DLQ_STREAM)
        for rest in ("", ".>")
    ),
    *(f"{_API}.STREAM.MSG.GET.{stream}" for stream in (EVENT_STREAM, OBJECT_STREAM, DLQ_STREAM)),
    f"{_API}.STREAM.PURGE.{OBJECT_STREAM}",
    f"$O.{BUCKET}.>",
    letters_of("malformed"),
)
_LOOKING = (
    f"{_API}.INFO",
    f"{_API}.STREAM.LIST",
    f"{_API}.STREAM.NAMES",
    f"{_API}.CONSUMER.INFO.{DLQ_STREAM}.>",
)
"""What the usual tools ask first, whatever they are used for: the nats command, nats.js, nats-py."""
_TOKEN_READING = (
    *(f"{_API}.DIRECT.GET.{TOKEN_STREAM}{rest}" for rest in ("", ".>")),
    f"{_API}.STREAM.MSG.GET.{TOKEN_STREAM}",
)
_OPERATOR_ONLY = (
    ALL_TOKENS,
    *_TOKEN_READING,
    *(f"{_API}.STREAM.{verb}.*" for verb in ("CREATE", "UPDATE")),
    *(f"{_API}.CONSUMER.{verb}.{stream}" for verb in ("LIST", "NAMES") for stream in (EVENT_STREAM, DLQ_STREAM)),
    *_LOOKING,
    letters_of("retry"),
)


def may_publish(role: str) -> list[str]:
    """The subjects, with wildcards, that ``role`` may publish on."""
    subjects = [*_own_words(role), *_SHARED, *_own_letters(role)]
    if role == GATEWAY:
        subjects += _TOKEN_READING
    if role == OPERATOR:
        subjects += _OPERATOR_ONLY
    return subjects


def _own_words(role: str) -> list[str]:
    """What the declarations let a role say, and of what names its speaker, only in its own name."""
    return [
        filter_of(word, **{name: role for name, token in word.TOKENS.items() if token.is_speaker})
        for word in words_of(role)
    ]


def _own_letters(role: str) -> list[str]:
    """What lets the workers of a role give events up and take them back: its durable consumer has its name."""
    consumer = (f"{_API}.CONSUMER.{verb}.{DLQ_STREAM}.{role}" for verb in ("DURABLE.CREATE", "MSG.NEXT", "INFO"))
    return [
        *consumer,
        f"$JS.ACK.{DLQ_STREAM}.{role}.>",
        letters_of("given_up", role),
        letters_of("handled", role),
    ]


def may_hear(role: str) -> list[str]:
    """The subjects, with wildcards, that ``role`` may subscribe to."""
    heard = ["_INBOX.>", *(filter_of(word) for word in live_words())]
    # Events are read through consumers; the operator's own programs hear them as well.
    return [*heard, EVENTS] if role == OPERATOR else heard


def new_passwords() -> dict[str, str]:
    """A random password for each role."""
    return {role: secrets.token_urlsafe(24) for role in roles()}


def authorization(passwords: Mapping[str, str]) -> str:
    """The ``authorization`` block of a nats-server config with one user for each role."""
    users = [
        {
            "user": role,
            "password": passwords[role],
            "permissions": {"publish": {"allow": may_publish(role)}, "subscribe": {"allow": may_hear(role)}},
        }
        for role in roles()
    ]
    return f"authorization: {json.dumps({'users': users}, indent=2)}\n"
