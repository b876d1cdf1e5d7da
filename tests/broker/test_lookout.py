"""Only an agent that is not heard is said to be missing, and clients only where somebody counts them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest
import pytest_asyncio

from agents.cli import lookout as module
from agents.cli.lookout import AGENTS, QUIET_S, Lookout, lookout
from agents.core.views.run import RunView
from agents.words.events import Heartbeat, RoundStarted
from bus.client import Bus
from bus.words.envelope import Stored, new_event
from bus.words.payload import Payload
from tests.builders import config, labelled, planned, run_started
from tests.conftest import wait_for

NOW = datetime(2026, 11, 24, tzinfo=UTC)
LABELLED = [labelled(f"user-{index:04d}") for index in range(3)]


@pytest_asyncio.fixture
async def one(bus: Bus) -> AsyncIterator[Lookout]:
    """One that hears what this test says of agents."""
    async with lookout(bus, RunView("run")) as found:
        yield found


def happened(one: Lookout, *payloads: Payload) -> None:
    for payload in payloads:
        at = one.view.sequence + 1
        one.view.fold(Stored(at, NOW + timedelta(seconds=at), new_event(payload, source="test")))


async def beat(bus: Bus, one: Lookout, role: str, name: str = "1") -> None:
    before = one.present(role)
    await bus.say(Heartbeat(role=role, id=name, time=NOW, uptime_s=1.0))
    await wait_for(lambda: one.present(role) > before)


async def test_the_missing_agent_of_each_step_is_named(bus: Bus, one: Lookout) -> None:
    happened(one, run_started(config(users=3)))
    assert (await one.missing())[0].startswith("no agent is heard; start each in a terminal of its own")
    await beat(bus, one, "evaluator")
    assert await one.missing() == ["nobody labels the images: no labeller is heard; start one: fedbus agent labeller"]
    await beat(bus, one, "labeller")
    assert await one.missing() == []
    happened(one, *LABELLED)
    assert await one.missing() == ["no round was started; start the first: fedbus round start run"]
    happened(one, RoundStarted(run="run", round=1))
    assert await one.missing() == [
        "nobody plans the rounds: no dispatcher is heard; start one: fedbus agent dispatcher"
    ]
    await beat(bus, one, "dispatcher")
    assert await one.missing() == []
    happened(one, planned(3, 3))
    assert [line.split(":")[0] for line in await one.missing()] == [
        "nobody hands out the tasks",
        "nobody makes the model",
    ]


@pytest.mark.parametrize(
    ("counted", "gateways", "said"), [(0, 1, True), (1, 1, False), (None, 1, False), (0, 2, False)]
)
async def test_no_client_is_said_only_where_one_gateway_counts_none(
    bus: Bus, one: Lookout, monkeypatch: pytest.MonkeyPatch, counted: int | None, gateways: int, said: bool
) -> None:
    async def clients() -> int | None:
        return counted

    monkeypatch.setattr(module, "clients", clients)
    happened(one, run_started(config(users=3)), *LABELLED, RoundStarted(run="run", round=1), planned(3, 3))
    for role in AGENTS:
        await beat(bus, one, role)
    for index in range(1, gateways):
        await beat(bus, one, "gateway", f"more-{index}")
    assert await one.missing() == ([module.NO_CLIENT] if said else [])


async def test_a_run_of_which_something_is_heard_is_not_quiet(one: Lookout) -> None:
    happened(one, run_started(config(users=3)))
    assert one.quiet_s() < QUIET_S
