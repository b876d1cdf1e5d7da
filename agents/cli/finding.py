"""Finds a run on the bus, for the commands that are told its name."""

from __future__ import annotations

from agents.words.events import RunStarted
from bus.client import Bus
from bus.errors import FedbusError
from bus.words.subjects import checked, events_of_type

CONNECT_S = 5.0


class RunUnknownError(FedbusError):
    """There is no run of this name on the bus."""

    code = "run_unknown"


async def find_run(bus: Bus, run: str) -> RunStarted:
    """The event that started ``run``.

    Raises:
        RunUnknownError: there is no such run.
    """
    stored = await bus.find(events_of_type("run.started", checked(run)))
    if stored is None or not isinstance(stored.event.data, RunStarted):
        raise RunUnknownError(f"there is no run {run!r} on this bus", hint="start one: fedbus run start")
    return stored.event.data
