"""Gateway and all clients killed together while their tasks are out: it costs seconds, and everybody counts."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest

from agents.cli.client_mix import ClientMix
from agents.cli.system import client_commands
from agents.words.events import UpdateSubmitted
from agents.words.run_config import RunConfig
from tests.chaos.conftest import Survived
from tests.chaos.system import Chaos, Outcome, complete, small

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(240)]
CLIENTS, BACK_S = 2, 2.5
COSTS_S = 30.0
"""The most that it may cost, with time for a busy machine; the dead would be waited for for 75 s."""
AS_SHIPPED = {"FEDBUS_GATEWAY_LEASE_S": "75", "FEDBUS_GATEWAY_HEARTBEAT_S": "5"}
"""A lost client's tasks wait for it as long as they do by default, and not as shortly as in the other cases."""


@dataclass
class AllAtOnce:
    """Kills gateway and clients after ``after`` updates; the gateway comes back, and clients after ``away_s``.

    They come under their old names, or under new ones, as pages do that were closed.
    """

    after: int
    away_s: float
    new_names: bool

    async def __call__(self, chaos: Chaos) -> None:
        await chaos.until(UpdateSubmitted, count=self.after)
        processes = chaos.system.processes
        names = [f"native-{number}" for number in range(1, CLIENTS + 1)]
        for name in (*names, "gateway"):
            os.kill(processes.pids()[name], signal.SIGKILL)
        for name in names:
            await processes.stop(name)
        # Here time itself is what is tested.
        await asyncio.sleep(self.away_s)
        system = chaos.system
        prefix = "again-" if self.new_names else ""
        mix = ClientMix(native=CLIENTS)
        for command in client_commands(mix, system.connection, store=system.store, logs=system.logs, prefix=prefix):
            processes.start(command)


async def run(folder: Path, config: RunConfig, disturb: AllAtOnce | None = None) -> Outcome:
    outcome = await complete(
        folder, config=config, clients=ClientMix(native=CLIENTS), variables=AS_SHIPPED, disturb=disturb
    )
    assert outcome.status == "completed"
    assert outcome.verdict.problems == []
    assert outcome.verdict.updates == config.users
    return outcome


@pytest.mark.parametrize("deadline", [15.0, 300.0])
async def test_sixty_tasks_survive_gateway_and_clients_that_are_killed_together(
    deadline: float, survived: list[Survived], tmp_path: Path
) -> None:
    config = small(users=60, images=20, rounds=1, deadline=deadline)
    undisturbed = await run(tmp_path / "undisturbed", config)
    for new_names in (False, True):
        outcome = await run(tmp_path / f"system-{new_names}", config, AllAtOnce(20, BACK_S, new_names))
        assert outcome.models == undisturbed.models
        assert outcome.seconds < undisturbed.seconds + COSTS_S
        names = "new names" if new_names else "their old names"
        survived.append(
            Survived(
                f"gateway and clients killed, back after {BACK_S:g} s under {names}, deadline {deadline:g} s", outcome
            )
        )
