"""The CloudEvents 1.0 envelope that every durable event travels in, as structured JSON."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal
from uuid import uuid4

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, SerializeAsAny, ValidationError

from bus.errors import MalformedEventError
from bus.words.payload import Payload, payload_of
from bus.words.problems import what_is_wrong
from bus.words.subjects import event_subject

CONTENT_TYPE = "application/cloudevents+json"
TYPE_PREFIX = "fedbus."
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")


class Event(BaseModel):
    """One fact, immutable once published.

    ``type`` is ``fedbus.<noun>.<verb>`` and decides the class of ``data``. ``subject`` is the CloudEvents subject
    (here the NATS subject the event lives on), ``correlationid`` the run, ``causationid`` the id of the event that
    this one answers.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    specversion: Literal["1.0"] = "1.0"
    id: str = Field(min_length=1, max_length=128)
    source: str = Field(min_length=1, max_length=256)
    type: str = Field(min_length=1, max_length=128)
    subject: str | None = Field(default=None, max_length=256)
    time: AwareDatetime | None = None
    datacontenttype: str = "application/json"
    traceparent: str | None = Field(default=None, max_length=64)
    correlationid: str | None = Field(default=None, max_length=128)
    causationid: str | None = Field(default=None, max_length=128)
    data: SerializeAsAny[Payload]

    def to_json(self) -> bytes:
        """The event as it goes on the wire."""
        return self.model_dump_json(exclude_none=True).encode()


@dataclass(frozen=True)
class Stored:
    """An event with its place in the stream: its sequence number and the time at which the broker took it."""

    sequence: int
    time: datetime
    event: Event


def new_event(data: Payload, *, source: str, cause: Event | None = None) -> Event:
    """An event that states ``data`` now, traced to ``cause`` when there is one."""
    return Event(
        id=str(uuid4()),
        source=source,
        type=TYPE_PREFIX + data.TYPE,
        subject=event_subject(data),
        time=datetime.now(UTC),
        traceparent=_child_trace(cause.traceparent if cause else None, data.run),
        correlationid=data.run,
        causationid=cause.id if cause else None,
        data=data,
    )


def _child_trace(parent: str | None, run: str) -> str:
    """A W3C traceparent: the trace is the run's, the span is new."""
    match = _TRACEPARENT.fullmatch(parent) if parent else None
    trace = match[1] if match else hashlib.sha256(run.encode()).hexdigest()[:32]
    return f"00-{trace}-{uuid4().hex[:16]}-01"


def parse_event(body: bytes) -> Event:
    """The event in ``body``.

    Raises:
        MalformedEventError: not JSON, not a CloudEvent, an unknown type, or a payload that breaks its schema.
        NoWordsError: no event is declared in this process, so none can be read.
    """
    try:
        outer = _Outer.model_validate_json(body)
    except ValidationError as error:
        raise MalformedEventError(f"not a CloudEvents 1.0 event: {what_is_wrong(error)}") from None
    payload_class = payload_of(outer.type.removeprefix(TYPE_PREFIX))
    try:
        data = payload_class.model_validate(outer.data)
        return Event.model_validate({**outer.model_dump(exclude={"data"}), "data": data})
    except ValidationError as error:
        raise MalformedEventError(f"{outer.type}: {what_is_wrong(error)}") from None


class _Outer(BaseModel):
    """The envelope before its type is known."""

    model_config = ConfigDict(extra="allow")

    type: str
    data: dict[str, Any]
