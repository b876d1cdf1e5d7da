"""Fifty names of one token that take tasks and do none, beside three clients that work, on a whole system."""

from __future__ import annotations

from pathlib import Path

import pytest

from agents.cli.client_mix import ClientMix
from agents.runtime.shipped import DEFAULT_ARTIFACTS
from artifacts.manifest import TRAINABLE, load_manifest
from tests.broker.gateway.hostile import KINDS, Kind, attacked
from tests.chaos.conftest import Survived
from tests.chaos.system import Outcome, chaos_system, run_to_the_end, small
from tests.chaos.test_all_at_once import AS_SHIPPED

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(400)]
NAMES, CLIENTS = 50, 3
TIMES, MORE_S = 3.0, 10.0
"""The most that it may cost, with time for a busy machine; before anything is known a task's own time at the default
deadline is 75 s."""


async def run(folder: Path, deadline: float, kind: Kind | None = None) -> Outcome:
    """Two rounds of sixty users, whom everybody is waited for; the hostile are there first."""
    config = small(users=60, images=20, rounds=2, deadline=deadline)
    async with chaos_system(folder, variables=AS_SHIPPED) as chaos:
        connection = chaos.system.connection
        url = connection.gateway_url.replace("http", "ws", 1) + "/ws"
        if kind is None:
            chaos.system.start_clients(ClientMix(native=CLIENTS))
            outcome = await run_to_the_end(chaos, config)
        else:
            size = load_manifest(DEFAULT_ARTIFACTS).files[TRAINABLE].ref.size
            async with attacked(url, connection.join_token, NAMES, kind, size=size):
                chaos.system.start_clients(ClientMix(native=CLIENTS))
                outcome = await run_to_the_end(chaos, config)
    assert outcome.status == "completed"
    assert outcome.verdict.problems == []
    assert outcome.verdict.updates == config.users * config.rounds
    return outcome


@pytest.mark.parametrize("deadline", [60.0, 300.0])
async def test_fifty_hostile_names_cost_a_round_a_few_times_what_it_takes_and_change_nothing(
    deadline: float, survived: list[Survived], tmp_path: Path
) -> None:
    undisturbed = await run(tmp_path / "undisturbed", deadline)
    survived.append(Survived(f"three clients alone, deadline {deadline:g} s", undisturbed))
    for kind in KINDS:
        outcome = await run(tmp_path / kind, deadline, kind)
        survived.append(Survived(f"{NAMES} hostile names: {kind}, deadline {deadline:g} s", outcome))
        assert outcome.models == undisturbed.models
        assert outcome.seconds < TIMES * undisturbed.seconds + MORE_S
