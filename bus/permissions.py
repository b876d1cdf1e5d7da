"""What each role may say: users for the broker's config, so that a taken-over agent cannot speak for another.

An agent may publish its own events only. Every role may read the stream, keep consumers on it, and put and read
objects, which are safe to share because every reader checks their digest. Only ``cli``, the operator, may make or
change streams.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping

from bus.events import (
    ImagesLabelled,
    ModelEvaluated,
    ModelPublished,
    Payload,
    RoundClosed,
    RoundExtended,
    RoundFailed,
    RoundPlanned,
    RoundStarted,
    RunFinished,
    RunStarted,
    TaskAssigned,
    UpdateRejected,
    UpdateSubmitted,
)
from bus.subjects import ALL_TOKENS, DEAD_LETTERS, EVENTS, HEARTBEATS, LIVE_PROGRESS, events_of_type, heartbeats_of
from bus.topology import BUCKET, DLQ_STREAM, EVENT_STREAM, OBJECT_STREAM, TOKEN_STREAM

OPERATOR = "cli"
SAYS: dict[str, tuple[type[Payload], ...]] = {
    OPERATOR: (RunStarted, RoundStarted, RunFinished),
    "labeller": (ImagesLabelled, RunFinished),
    "dispatcher": (RoundStarted, RoundPlanned, TaskAssigned, RunFinished),
    "aggregator": (UpdateRejected, RoundExtended, RoundClosed, RoundFailed, ModelPublished),
    "evaluator": (ModelEvaluated,),
    "gateway": (UpdateSubmitted, UpdateRejected),
}
ROLES = tuple(SAYS)
_API = "$JS.API"
_SHARED = (
    f"{_API}.STREAM.INFO.*",
    *(
        f"{_API}.CONSUMER.{verb}.{EVENT_STREAM}.>"
        for verb in ("CREATE", "DURABLE.CREATE", "MSG.NEXT", "INFO", "DELETE")
    ),
    f"$JS.ACK.{EVENT_STREAM}.>",
    *(f"{_API}.DIRECT.GET.{stream}{rest}" for stream in (EVENT_STREAM, OBJECT_STREAM) for rest in ("", ".>")),
    f"{_API}.STREAM.PURGE.{OBJECT_STREAM}",
    f"$O.{BUCKET}.>",
    DEAD_LETTERS,
)
_TOKEN_READING = tuple(f"{_API}.DIRECT.GET.{TOKEN_STREAM}{rest}" for rest in ("", ".>"))
_OPERATOR_ONLY = (
    ALL_TOKENS,
    *_TOKEN_READING,
    *(f"{_API}.STREAM.{verb}.*" for verb in ("CREATE", "UPDATE")),
    *(f"{_API}.DIRECT.GET.{DLQ_STREAM}{rest}" for rest in ("", ".>")),
)
_HEARD = ("_INBOX.>", LIVE_PROGRESS, HEARTBEATS)
"""What everybody may listen to without a consumer; the operator's own programs hear the events as well."""


def may_publish(role: str) -> list[str]:
    """The subjects, with wildcards, that ``role`` may publish on."""
    subjects = [events_of_type(payload.TYPE) for payload in SAYS[role]]
    subjects += [heartbeats_of(role), *_SHARED]
    if role == "gateway":
        subjects += [LIVE_PROGRESS, *_TOKEN_READING]
    if role == OPERATOR:
        subjects += _OPERATOR_ONLY
    return subjects


def may_hear(role: str) -> list[str]:
    """The subjects, with wildcards, that ``role`` may subscribe to."""
    return [*_HEARD, EVENTS] if role == OPERATOR else list(_HEARD)


def new_passwords() -> dict[str, str]:
    """A random password for each role."""
    return {role: secrets.token_urlsafe(24) for role in ROLES}


def authorization(passwords: Mapping[str, str]) -> str:
    """The ``authorization`` block of a nats-server config with one user for each role."""
    users = [
        {
            "user": role,
            "password": passwords[role],
            "permissions": {"publish": {"allow": may_publish(role)}, "subscribe": {"allow": may_hear(role)}},
        }
        for role in ROLES
    ]
    return f"authorization: {json.dumps({'users': users}, indent=2)}\n"
