"""A run that there is not is told with the one that was probably meant."""

from __future__ import annotations

import pytest

from agents.cli.finding import RunUnknownError, find_run
from bus.client import Bus
from tests.builders import config, run_started


async def test_an_unknown_run_is_told_with_the_nearest_name(bus: Bus, unique_run: str) -> None:
    event = run_started(config()).model_copy(update={"run": unique_run})
    await bus.publish(event)
    assert await find_run(bus, unique_run) == event
    with pytest.raises(RunUnknownError) as told:
        await find_run(bus, unique_run[:-1])
    assert told.value.message == f"there is no run {unique_run[:-1]!r} on this bus"
    assert told.value.hint == f"did you mean {unique_run}? fedbus run list shows those that there are"
    with pytest.raises(RunUnknownError) as told:
        await find_run(bus, "zzz")
    assert told.value.hint == "fedbus run list shows those that there are"
