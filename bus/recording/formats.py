"""Brings the events of older recordings up to what this version writes, one format at a time.

Whoever changes an event so that old ones cannot be read any more raises ``FORMAT`` and adds the step from the format
before: a pure function from the JSON object of an event to the JSON object of the same event in the next format. What
cannot be brought up raises ``ValueError`` with the reason.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

FORMAT = 2
LARGEST_LOSS = 1e4
"""What the evaluator says of a model that diverged, nats."""
RawEvent = dict[str, Any]


def _finite_losses(event: RawEvent) -> RawEvent:
    """Format 1 to 2: a loss that is infinite or not a number was written as null, and is the largest loss since."""
    data = event.get("data")
    if event.get("type") != "fedbus.model.evaluated" or not isinstance(data, dict):
        return event
    scores = {
        name: score | {"loss": LARGEST_LOSS}
        for name in ("base", "updated")
        if isinstance(score := data.get(name), dict) and score.get("loss", 0.0) is None
    }
    return event | {"data": data | scores}


STEPS: dict[int, Callable[[RawEvent], RawEvent]] = {1: _finite_losses}
"""From each format to the next."""


def upgraded(event: RawEvent, written_in: int) -> RawEvent:
    """The event of a recording in format ``written_in``, which is at most ``FORMAT``, as this version would write it.

    Raises:
        ValueError: there is no way from that format, or this event cannot take it.
    """
    for step in range(written_in, FORMAT):
        if step not in STEPS:
            raise ValueError(f"format {written_in} is older than this version of fedbus can read")
        event = STEPS[step](event)
    return event
