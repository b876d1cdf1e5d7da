"""Brings the events of older recordings up to what this version writes, one format at a time.

Whoever changes an event so that old ones cannot be read any more raises ``FORMAT`` and declares the step from the
format before with the event (``Payload.UPGRADES``).
"""

from __future__ import annotations

from typing import Any

from bus.words.envelope import TYPE_PREFIX
from bus.words.payload import payload_of

FORMAT = 2
OLDEST = 1
RawEvent = dict[str, Any]


def upgraded(event: RawEvent, written_in: int) -> RawEvent:
    """The event of a recording in format ``written_in``, which is at most ``FORMAT``, as this version would write it.

    Raises:
        ValueError: that format is too old, or this event cannot be brought up.
        MalformedEventError: it has a type that nobody knows.
    """
    if written_in < OLDEST:
        raise ValueError(f"format {written_in} is older than this version of fedbus can read")
    type_, data = event.get("type"), event.get("data")
    if not isinstance(type_, str) or not isinstance(data, dict):
        return event
    steps = payload_of(type_.removeprefix(TYPE_PREFIX)).UPGRADES
    for step in range(written_in, FORMAT):
        data = steps[step](data) if step in steps else data
    return event | {"data": data}
