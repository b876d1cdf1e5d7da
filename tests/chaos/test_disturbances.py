"""The broker killed, processes frozen past every time-out, everything twice, a browser killed: the run completes."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from agents.cli.client_mix import ClientMix
from agents.cli.here import AGENTS
from agents.cli.processes import Command
from agents.words.events import TaskAssigned, UpdateSubmitted
from tests.chaos.conftest import Survived
from tests.chaos.disturbances import kill_broker_at, stop_for
from tests.chaos.system import LEASE_S, Chaos, Outcome, complete

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(240)]
FROZEN_S = 3 * LEASE_S + 7.0
"""Longer than heartbeats, leases and their deliveries last."""


def check(outcome: Outcome, reference: Outcome) -> None:
    assert outcome.status == "completed"
    assert outcome.models == reference.models
    assert outcome.verdict.problems == []


async def test_a_broker_that_is_killed_at_every_stage_changes_nothing(
    undisturbed: Outcome, survived: list[Survived], tmp_path: Path
) -> None:
    moments = ["run.started", "task.assigned", "update.submitted", "round.closed", "model.published"]
    outcome = await complete(tmp_path / "system", disturb=kill_broker_at(*moments))
    check(outcome, undisturbed)
    assert outcome.restarts == {}
    survived.append(Survived(f"the broker killed at {', '.join(moments)}", outcome))


@pytest.mark.parametrize("name", [*AGENTS, "native-1"])
async def test_a_process_that_stands_still_past_every_time_out_changes_nothing(
    name: str, undisturbed: Outcome, survived: list[Survived], tmp_path: Path
) -> None:
    stood_still = False

    async def freeze(chaos: Chaos) -> None:
        nonlocal stood_still
        await chaos.until(TaskAssigned)
        await stop_for([chaos.system.processes.pids()[name]], FROZEN_S)
        stood_still = True

    outcome = await complete(tmp_path / "system", disturb=freeze)
    check(outcome, undisturbed)
    assert stood_still
    survived.append(Survived(f"{name} stopped for {FROZEN_S:g} s", outcome))


async def test_every_agent_twice_but_the_gateway_changes_nothing(
    undisturbed: Outcome, survived: list[Survived], tmp_path: Path
) -> None:
    async def start_again(chaos: Chaos) -> None:
        for name in AGENTS:
            if name != "gateway":
                first = chaos.system.agent(name)
                second = Command(f"{name}-2", first.argv, chaos.system.logs / f"{name}-2.log", first.env)
                chaos.system.processes.start(second)

    outcome = await complete(tmp_path / "system", disturb=start_again)
    check(outcome, undisturbed)
    assert outcome.restarts == {}
    survived.append(Survived("labeller, dispatcher, aggregator and evaluator twice", outcome))


async def test_a_browser_that_is_killed_in_its_task_is_replaced(survived: list[Survived], tmp_path: Path) -> None:
    async def kill(chaos: Chaos) -> None:
        await chaos.until(UpdateSubmitted)
        os.killpg(chaos.system.processes.pids()["browser-1"], signal.SIGKILL)

    outcome = await complete(tmp_path / "system", clients=ClientMix(browser=1), disturb=kill)
    # What a browser trains is not compared bit by bit: its models are checked against the recorded updates.
    assert outcome.status == "completed"
    assert outcome.restarts == {"browser-1": 1}
    assert (outcome.verdict.updates, outcome.verdict.models) == (12, 2)
    assert outcome.verdict.problems == []
    survived.append(Survived("a headless Chromium killed in its task", outcome))
