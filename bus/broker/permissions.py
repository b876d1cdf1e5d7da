"""What each role may say and hear: users for the broker's config, so that a taken-over agent cannot speak for another.

An agent may publish only what its declaration lets it say (``bus.words.payload``), and give up only what it could not
handle itself. Every role may read the stream, and put and get objects, which are safe to share because nothing that is
in their stream can be overwritten, and every reader checks their digest. The durable consumers are those of their
roles: they have the roles' names. Only ``cli``, the operator, may make or change streams, and give dead letters back;
only ``gc`` may delete objects, and no role anything else.

Answers come on inboxes, which have a prefix for each role (``inbox_prefix``), because whoever hears another's inbox
reads its events and objects and may settle its deliveries.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping

from bus.broker.settings import inbox_prefix
from bus.broker.topology import BUCKET, DELETION_STREAM, DLQ_STREAM, OBJECT_STREAM, TOKEN_STREAM
from bus.words.payload import COLLECTOR, GATEWAY, OPERATOR, live_words, roles, words_of
from bus.words.subjects import ALL_DELETIONS, ALL_TOKENS, EVENT_STREAM, EVENTS, filter_of, letters_of, newest_letters

_API = "$JS.API"
_SHARED = (
    f"{_API}.STREAM.INFO.*",
    # With the name of a reader that nobody else can guess (``bus.stream.event_reader``), or the role's own.
    f"{_API}.CONSUMER.CREATE.{EVENT_STREAM}.>",
    f"{_API}.CONSUMER.MSG.NEXT.{EVENT_STREAM}.*",
    *(
        f"{_API}.DIRECT.GET.{stream}{rest}"
        for stream in (EVENT_STREAM, OBJECT_STREAM, DLQ_STREAM)
        for rest in ("", ".>")
    ),
    *(f"{_API}.STREAM.MSG.GET.{stream}" for stream in (EVENT_STREAM, OBJECT_STREAM, DLQ_STREAM)),
    # A later word on an object takes nothing from an earlier one; whoever reads takes the one that is true.
    f"$O.{BUCKET}.M.>",
    letters_of("malformed"),
    newest_letters(),
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
    *(f"{_API}.DIRECT.GET.{DELETION_STREAM}{rest}" for rest in ("", ".>")),
    letters_of("retry"),
)
_COLLECTOR_ONLY = (ALL_DELETIONS, f"{_API}.STREAM.PURGE.{OBJECT_STREAM}")


def may_publish(role: str) -> list[str]:
    """The subjects, with wildcards, that ``role`` may publish on, but for those that it ``may_not_publish``."""
    subjects = [*_own_words(role), *_SHARED, *_own_consumers(role), f"$O.{BUCKET}.C.{role}.>"]
    if role == GATEWAY:
        subjects += _TOKEN_READING
    if role == OPERATOR:
        subjects += _OPERATOR_ONLY
    if role == COLLECTOR:
        subjects += _COLLECTOR_ONLY
    return subjects


def may_not_publish(role: str) -> list[str]:
    """The durable consumers of others: to make one anew is to change it, and to pull from it to take its work away."""
    return [
        f"{_API}.CONSUMER.{verb}.{EVENT_STREAM}.{other}{rest}"
        for other in roles()
        if other != role
        for verb, rest in (("CREATE", ""), ("CREATE", ".>"), ("MSG.NEXT", ""))
    ]


def _own_words(role: str) -> list[str]:
    """What the declarations let a role say, and of what names its speaker, only in its own name."""
    return [
        filter_of(word, **{name: role for name, token in word.TOKENS.items() if token.is_speaker})
        for word in words_of(role)
    ]


def _own_consumers(role: str) -> list[str]:
    """What lets the workers of a role share events, give them up and take them back: its consumers have its name."""
    return [
        *(
            f"{_API}.CONSUMER.{verb}.{stream}.{role}"
            for stream in (EVENT_STREAM, DLQ_STREAM)
            for verb in ("DURABLE.CREATE", "MSG.NEXT", "INFO")
        ),
        *(f"$JS.ACK.{stream}.{role}.>" for stream in (EVENT_STREAM, DLQ_STREAM)),
        letters_of("given_up", role),
        letters_of("handled", role),
    ]


def may_hear(role: str) -> list[str]:
    """The subjects, with wildcards, that ``role`` may subscribe to."""
    heard = [f"{inbox_prefix(role)}.>", *(filter_of(word) for word in live_words())]
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
            "permissions": {
                "publish": {"allow": may_publish(role), "deny": may_not_publish(role)},
                "subscribe": {"allow": may_hear(role)},
            },
        }
        for role in roles()
    ]
    return f"authorization: {json.dumps({'users': users}, indent=2)}\n"
