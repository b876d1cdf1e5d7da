"""Where in the stream an agent has to begin: what is before that is about runs that are over.

The newest ``runs.settled`` names the runs that were open; two small events of each run that came since tell the rest.
So a start takes as long as what is open, whatever there has been.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass

from agents.words.events import RunFinished, RunsSettled, RunStarted
from bus.client import Bus
from bus.words.envelope import Stored
from bus.words.subjects import events_of_type


@dataclass(frozen=True)
class Past:
    """What need not be read: everything up to the sequence ``after``.

    Attributes:
        runs: the ``run.started`` and ``run.finished`` up to there, in stream order: those that came after the newest
            ``runs.settled``, or all.
    """

    after: int
    runs: tuple[Stored, ...]


def past_of(events: Iterable[Stored], settled: RunsSettled | None = None) -> Past:
    """The past, from every ``run.started`` and ``run.finished`` up to some place in the stream, in stream order.

    With ``settled``, those after its ``sequence`` are enough.

    It ends before the first event of the oldest run that is open; without one, at the last of these events. Nothing of
    an open run comes before its ``run.started`` that anybody counts, and what came since is behind the last event that
    is known here: so whoever goes on from ``after`` has missed nothing, whenever this was read, and from whichever
    replica.
    """
    known = sorted(events, key=lambda stored: stored.sequence)
    opened = {one.run: one.sequence for one in settled.open} if settled is not None else {}
    last = known[-1].sequence if known else settled.sequence if settled is not None else 0
    for stored in known:
        match stored.event.data:
            case RunStarted() as data:
                opened.setdefault(data.run, stored.sequence)
            case RunFinished() as data:
                opened.pop(data.run, None)
            case _:
                pass
    after = min(opened.values()) - 1 if opened else last
    return Past(after, tuple(stored for stored in known if stored.sequence <= after))


async def read_past(bus: Bus) -> Past:
    """The past as the stream has it now."""
    newest = await bus.newest(events_of_type(RunsSettled.TYPE))
    settled = newest.event.data if newest is not None and isinstance(newest.event.data, RunsSettled) else None
    begin = settled.sequence if settled is not None else 0
    events = [stored async for stored in starts_and_ends(bus, after=begin)]
    # What is lost may have been the start of a run, and what came after it is looked at.
    lost = min((one for one in bus.unreadable if one > begin), default=None)
    return past_of((one for one in events if lost is None or one.sequence < lost), settled)


async def starts_and_ends(bus: Bus, *, after: int = 0) -> AsyncIterator[Stored]:
    """Every ``run.started`` and ``run.finished`` that the stream has now behind this sequence, in stream order."""
    filters = [events_of_type("run.started"), events_of_type("run.finished")]
    async with bus.follow(filters, after=after, live=False) as items:
        async for item in items:
            if isinstance(item, Stored):
                yield item
