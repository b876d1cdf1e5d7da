"""Where in the stream an agent has to begin: what is before that is about runs that are over.

Two small events of each run tell, so that a start takes as long as what is open, and hardly longer for what has been.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from agents.words.events import RunFinished, RunStarted
from bus.client import Bus
from bus.words.envelope import Stored
from bus.words.subjects import events_of_type


@dataclass(frozen=True)
class Past:
    """What need not be read: everything up to the sequence ``after``.

    Attributes:
        runs: the ``run.started`` and ``run.finished`` up to there, in stream order.
    """

    after: int
    runs: tuple[Stored, ...]


def past_of(events: Iterable[Stored]) -> Past:
    """The past, from every ``run.started`` and ``run.finished`` up to some place in the stream, in stream order.

    It ends before the first event of the oldest run that is open; without one, at the last of these events. Nothing of
    an open run comes before its ``run.started`` that anybody counts, and what came since is behind the last event that
    is known here: so whoever goes on from ``after`` has missed nothing, whenever this was read, and from whichever
    replica.
    """
    known = sorted(events, key=lambda stored: stored.sequence)
    opened: dict[str, int] = {}
    for stored in known:
        match stored.event.data:
            case RunStarted() as data:
                opened.setdefault(data.run, stored.sequence)
            case RunFinished() as data:
                opened.pop(data.run, None)
            case _:
                pass
    after = min(opened.values()) - 1 if opened else known[-1].sequence if known else 0
    return Past(after, tuple(stored for stored in known if stored.sequence <= after))


async def read_past(bus: Bus) -> Past:
    """The past as the stream has it now."""
    async with bus.follow([events_of_type("run.started"), events_of_type("run.finished")], live=False) as items:
        events = [item async for item in items if isinstance(item, Stored)]
    # What is lost may have been the start of a run, and what came after it is looked at.
    lost = min(bus.unreadable, default=None)
    return past_of(one for one in events if lost is None or one.sequence < lost)
