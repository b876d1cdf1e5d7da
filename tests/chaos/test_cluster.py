"""Two of every agent on three brokers, of which one dies, is cut off or is started again: the same model as on one."""

from __future__ import annotations

import asyncio
import contextlib
from collections import ChainMap
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from agents.cli.client_mix import ClientMix
from agents.cli.here import AGENTS
from agents.cli.processes import Command
from agents.cli.system import client_commands
from agents.words.events import ModelPublished, RoundClosed, RoundPlanned, TaskAssigned, UpdateSubmitted
from agents.words.run_config import RunConfig
from bus.broker.topology import STREAMS
from tests.chaos.conftest import Survived
from tests.chaos.network import READY_S, agents_on
from tests.chaos.system import Chaos, Outcome, chaos_system, run_to_the_end, small
from tests.chaos.torn import Torn, leader_of, torn_cluster
from tests.conftest import wait_for

CUT_S = 6.0
"""Longer than the others need to choose a new leader."""


@dataclass(frozen=True)
class Doubled:
    """A run with two of every agent, and the brokers below it."""

    chaos: Chaos
    torn: Torn


Storm = Callable[[Doubled], Awaitable[None]]


@contextlib.asynccontextmanager
async def doubled(folder: Path) -> AsyncIterator[Doubled]:
    """Two of every agent on a cluster, and a client of each gateway."""
    async with torn_cluster(folder) as torn:
        cluster = torn.cluster
        one = cluster.servers[0]
        async with agents_on(cluster.url, folder, bus=cluster.settings_for(), passwords=one.passwords) as chaos:
            system, url_file = chaos.system, folder / "gateway-2.url"
            own = {"FEDBUS_GATEWAY_URL_FILE": str(url_file), "FEDBUS_GATEWAY_SPOOL_DIR": str(folder / "spool-2")}
            for name in AGENTS:
                first = system.agent(name)
                log = system.logs / f"{name}-2.log"
                system.processes.start(Command(f"{name}-2", first.argv, log, ChainMap(own, first.env)))
            await wait_for(url_file.exists, within_s=READY_S)
            second = system.connection.model_copy(update={"gateway_url": url_file.read_text().strip()})
            for number, connection in enumerate((system.connection, second), 1):
                for command in client_commands(
                    ClientMix(native=1),
                    connection,
                    store=folder,
                    logs=system.logs,
                    prefix=f"gateway-{number}-",
                ):
                    system.processes.start(command)
            yield Doubled(chaos, torn)
            # Clients go before their gateways do.
            await system.processes.stop_all()


async def run_through(folder: Path, storm: Storm) -> Outcome:
    async with doubled(folder) as both:
        return await run_to_the_end(both.chaos, small(), lambda _: storm(both))


def check(outcome: Outcome, reference: Outcome) -> None:
    assert outcome.status == "completed"
    assert outcome.models == reference.models
    assert outcome.verdict.problems == []
    assert outcome.restarts == {}


async def kill_one_leader(both: Doubled) -> None:
    """Kills whoever leads the events."""
    await both.chaos.until(TaskAssigned)
    await both.torn.kill(await leader_of(both.chaos.bus, "EVENTS"))


async def kill_leaders(both: Doubled) -> None:
    """Kills whoever leads a stream, one stream after the other."""
    until, bus = both.chaos.until, both.chaos.bus
    moments = [
        lambda: until(RoundPlanned),
        lambda: until(TaskAssigned),
        lambda: until(UpdateSubmitted, count=2),
        lambda: until(RoundClosed),
        lambda: until(ModelPublished),
    ]
    for stream, moment in zip(STREAMS, moments, strict=True):
        await moment()
        await both.torn.kill(await leader_of(bus, stream.name or ""))


async def cut_one_off(both: Doubled) -> None:
    """Cuts the leader of the events off for a while."""
    await both.chaos.until(UpdateSubmitted)
    name = await leader_of(both.chaos.bus, "EVENTS")
    both.torn.cut_off(name)
    # Here time itself is what is tested.
    await asyncio.sleep(CUT_S)
    both.torn.heal()


async def restart_in_turn(both: Doubled) -> None:
    """Kills each broker once the one before it is back."""
    for name, kind in zip(both.torn.brokers, (TaskAssigned, UpdateSubmitted, RoundClosed), strict=True):
        await both.chaos.until(kind)
        await both.torn.kill(name)


async def everything(both: Doubled) -> None:
    """The leader of the events dies, and that of the objects is cut off."""
    await both.chaos.until(TaskAssigned)
    await both.torn.kill(await leader_of(both.chaos.bus, "EVENTS"))
    await both.chaos.until(UpdateSubmitted, count=2)
    both.torn.cut_off(await leader_of(both.chaos.bus, "OBJ_objects"))
    await both.chaos.until(RoundClosed)
    both.torn.heal()


@pytest.mark.timeout(240)
async def test_a_leader_that_dies_changes_nothing(
    undisturbed: Outcome, survived: list[Survived], tmp_path: Path
) -> None:
    outcome = await run_through(tmp_path, kill_one_leader)
    check(outcome, undisturbed)
    survived.append(Survived("on three brokers, the leader of the events killed", outcome))


@pytest.mark.chaos
@pytest.mark.timeout(240)
@pytest.mark.parametrize("storm", [kill_leaders, cut_one_off, restart_in_turn, everything])
async def test_brokers_of_a_cluster_that_fail_change_nothing(
    storm: Storm, undisturbed: Outcome, survived: list[Survived], tmp_path: Path
) -> None:
    outcome = await run_through(tmp_path, storm)
    check(outcome, undisturbed)
    survived.append(Survived(f"on three brokers, {storm.__name__.replace('_', ' ')}", outcome))


@pytest.mark.chaos
@pytest.mark.timeout(3600)
async def test_of_twenty_runs_in_a_row_on_a_cluster_each_makes_the_model_of_one_broker(
    runs: int, survived: list[Survived], tmp_path: Path
) -> None:
    """Sixty users, two of every agent, nothing disturbed; each run has a seed of its own, so that it finds no object
    that an earlier one put."""
    async with chaos_system(tmp_path / "one") as one:
        one.system.start_clients(ClientMix(native=2))
        alone = [await run_to_the_end(*of_sixty(one, seed)) for seed in range(runs)]
    assert len({outcome.model for outcome in alone}) == runs
    (tmp_path / "three").mkdir()
    async with doubled(tmp_path / "three") as both:
        for seed, reference in enumerate(alone):
            outcome = await run_to_the_end(*of_sixty(both.chaos, seed))
            check(outcome, reference)
            assert outcome.verdict.updates == 2 * 60
            survived.append(Survived(f"run {seed + 1} of {runs} with 60 users on three brokers", outcome))


def of_sixty(chaos: Chaos, seed: int) -> tuple[Chaos, RunConfig]:
    return replace(chaos, run=f"sixty-{seed}"), small(users=60, images=1, seed=seed)
