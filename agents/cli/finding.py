"""Finds a run on the bus, for the commands that are told its name."""

from __future__ import annotations

from difflib import get_close_matches

from agents.words.events import RunStarted
from bus.client import Bus
from bus.errors import FedbusError
from bus.words.envelope import Stored
from bus.words.subjects import checked, events_of, events_of_type

CONNECT_S = 5.0


class RunUnknownError(FedbusError):
    """There is no run of this name on the bus."""

    code = "run_unknown"


class RunStartLostError(FedbusError):
    """There is such a run, and what started it cannot be read any more."""

    code = "run_start_lost"


async def _is_told_of(bus: Bus, run: str) -> bool:
    """Whether a damaged stream has, or had, any event of this run."""
    if await bus.unreadable_subjects(events_of(run)):
        return True
    if not bus.unreadable:
        return False
    async with bus.follow(events_of(run), live=False) as items:
        async for item in items:
            if isinstance(item, Stored):
                return True
    return False


async def find_run(bus: Bus, run: str) -> RunStarted:
    """The event that started ``run``.

    Raises:
        RunStartLostError: the broker has lost it.
        RunUnknownError: there is no such run.
    """
    stored = await bus.find(events_of_type("run.started", checked(run)))
    if stored is None and await _is_told_of(bus, run):
        raise RunStartLostError(
            f"run {run} has lost its first event: the broker's store is damaged", hint="start another run"
        )
    if stored is None or not isinstance(stored.event.data, RunStarted):
        near = get_close_matches(run, await _run_names(bus), n=1)
        asked = f"did you mean {near[0]}? " if near else ""
        raise RunUnknownError(
            f"there is no run {run!r} on this bus", hint=f"{asked}fedbus run list shows those that there are"
        )
    return stored.event.data


async def _run_names(bus: Bus) -> list[str]:
    """The runs of this bus, newest first."""
    async with bus.follow(events_of_type("run.started"), live=False) as items:
        return [item.event.data.run async for item in items if isinstance(item, Stored)][::-1]
