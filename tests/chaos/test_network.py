"""Clients, gateway and agents over a bad network: late, narrow, cut, reset and half open."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from agents.cli.client_mix import ClientMix
from agents.cli.here import AGENTS
from agents.client.address import Address
from agents.client.runner import Client
from agents.core.exchange.messages import MAX_CHUNK_BYTES, Ping, Pong, UploadAccepted, UploadBegin, UploadCommit
from agents.gateway.settings import GatewaySettings
from agents.runtime.tasks import background
from agents.words.events import RoundClosed, RunFinished, TaskAssigned, UpdateSubmitted
from bus.broker.server import EmbeddedServer
from bus.client import Bus
from tests.broker.gateway.conftest import METRICS, Gateway, serving, talking, update
from tests.broker.gateway.conftest import gateway as gateway
from tests.broker.gateway.conftest import nats as nats
from tests.broker.gateway.test_client import ScriptedTrainer, submitted
from tests.chaos.conftest import Survived
from tests.chaos.network import Network, proxied
from tests.chaos.proxy import Proxy, Weather, proxy
from tests.chaos.system import Outcome, run_to_the_end, said, small
from tests.conftest import wait_for

Storm = Callable[[Network], Awaitable[None]]
CUT = MAX_CHUNK_BYTES + 100_000
SPARE = 20_000
"""Bytes of a conversation beside its upload, at most."""
TRIES = 17
"""How often a client tries to come back within a minute: with its pauses this takes between 31 and 62 seconds."""


def ready_trainer() -> ScriptedTrainer:
    trainer = ScriptedTrainer()
    trainer.may_finish.set()
    return trainer


def through(front: Proxy, trainer: ScriptedTrainer) -> Client:
    return Client(Address(f"http://{front.address}"), "native", trainer)


@pytest.mark.parametrize("reset", [False, True], ids=["cut", "reset"])
async def test_an_upload_that_the_network_cut_goes_on_at_its_offset(bus: Bus, tmp_path: Path, reset: bool) -> None:
    async with serving(bus, tmp_path) as gateway, proxy(gateway.url.removeprefix("http://")) as front:
        await gateway.assign("u0")
        front.cut_at(CUT, reset=reset)
        async with background(through(front, ready_trainer()).run()):
            await submitted(gateway, 1)
            first, second = front.upstream
    assert first == CUT
    assert len(update()) - MAX_CHUNK_BYTES <= second < len(update()) - MAX_CHUNK_BYTES + SPARE


@pytest.mark.chaos
@pytest.mark.timeout(180)
async def test_a_client_that_loses_the_gateway_for_a_minute_goes_on_with_its_upload_at_the_offset(
    bus: Bus, tmp_path: Path
) -> None:
    lease_s = GatewaySettings.model_fields["lease_s"].default
    async with (
        serving(bus, tmp_path, lease_s=lease_s) as gateway,
        proxy(gateway.url.removeprefix("http://")) as front,
    ):
        await gateway.assign("u0")
        front.cut_at(CUT)
        async with background(through(front, ready_trainer()).run()):
            await wait_for(lambda: sum(front.upstream) >= CUT)
            front.refusing = True
            await wait_for(lambda: front.refused >= TRIES, within_s=90)
            front.refusing = False
            await submitted(gateway, 1)
            *_, last = front.upstream
    assert len(update()) - MAX_CHUNK_BYTES <= last < len(update()) - MAX_CHUNK_BYTES + SPARE


async def test_a_client_and_a_gateway_whose_connection_is_half_open_find_each_other_again(
    bus: Bus, tmp_path: Path
) -> None:
    trainer = ScriptedTrainer()
    async with (
        serving(bus, tmp_path, heartbeat_s=0.3) as gateway,
        proxy(gateway.url.removeprefix("http://")) as front,
        background(through(front, trainer).run()),
    ):
        await gateway.assign("u0")
        async with asyncio.timeout(20):
            await trainer.started.wait()
        assert front.freeze() == 1
        trainer.may_finish.set()
        await submitted(gateway, 1)
        assert len(front.upstream) == 2


async def test_a_client_that_returns_while_its_update_is_kept_hears_by_its_new_number(
    nats: EmbeddedServer, gateway: Gateway
) -> None:
    await gateway.assign("u0")
    async with talking(gateway) as talk:
        lease = (await talk.task()).lease
        await talk.send(update(), await talk.begin(lease, update()))
        os.kill(nats.pid, signal.SIGSTOP)
        try:
            await talk.say(UploadCommit(lease=lease, upload=1, metrics=METRICS))
            # The answer to a ping: the commit before it was taken.
            await talk.say(Ping())
            await talk.hear_a(Pong)
            async with talking(gateway, resume=(lease,)) as again:
                digest = hashlib.sha256(update()).hexdigest()
                await again.say(UploadBegin(lease=lease, upload=2, size=len(update()), sha256=digest))
                await again.say(Ping())
                await again.hear_a(Pong)
                os.kill(nats.pid, signal.SIGCONT)
                answer = await again.hear_a(UploadAccepted)
        finally:
            os.kill(nats.pid, signal.SIGCONT)
    assert (answer.lease, answer.upload) == (lease, 2)


async def test_updates_come_in_over_a_late_and_narrow_line(bus: Bus, tmp_path: Path) -> None:
    users = [f"u{index}" for index in range(3)]
    async with serving(bus, tmp_path) as gateway, proxy(gateway.url.removeprefix("http://")) as front:
        front.weather = Weather(latency_s=0.03, jitter_s=0.05, bytes_per_s=4e6)
        await gateway.assign(*users)
        async with background(through(front, ready_trainer()).run()):
            found = await submitted(gateway, len(users))
        assert len(front.upstream) == 1
    assert {one.user for one in found} == set(users)


async def run_through(folder: Path, broker: Weather, gateway: Weather, storm: Storm) -> Outcome:
    """A small run over two bad lines while a storm goes on."""
    async with proxied(folder) as network:
        network.broker.weather, network.gateway.weather = broker, gateway
        network.chaos.system.start_clients(ClientMix(native=2))
        return await run_to_the_end(network.chaos, small(), lambda _: storm(network))


def check(outcome: Outcome, reference: Outcome) -> None:
    assert outcome.status == "completed"
    assert outcome.restarts == {}
    assert outcome.models == reference.models
    assert outcome.verdict.problems == []


@pytest.mark.timeout(240)
async def test_a_run_over_a_bad_network_ends_with_the_same_model(
    undisturbed: Outcome, survived: list[Survived], tmp_path: Path
) -> None:
    async def storm(network: Network) -> None:
        until = network.chaos.until
        await until(TaskAssigned)
        await wait_for(lambda: network.gateway.cut(reset=True))
        await until(UpdateSubmitted, count=2)
        await wait_for(network.broker.cut)
        await until(UpdateSubmitted, count=4)
        await wait_for(network.gateway.freeze)
        await until(RoundClosed)
        await wait_for(lambda: network.broker.cut(reset=True))
        await until(UpdateSubmitted, count=8)
        await wait_for(network.gateway.cut)

    narrow = Weather(latency_s=0.005, jitter_s=0.02, bytes_per_s=4e6)
    outcome = await run_through(tmp_path, Weather(latency_s=0.002, jitter_s=0.008), narrow, storm)
    check(outcome, undisturbed)
    survived.append(Survived("a late, uneven, narrow network that is cut, reset and half open", outcome))


@pytest.mark.chaos
@pytest.mark.timeout(240)
@pytest.mark.parametrize("line", ["broker", "gateway"])
async def test_a_line_that_is_lost_again_and_again_changes_nothing(
    line: str, undisturbed: Outcome, survived: list[Survived], tmp_path: Path
) -> None:
    choose, cuts = random.Random(f"cuts of the {line}"), 0

    async def storm(network: Network) -> None:
        nonlocal cuts
        while not await said(network.chaos, RunFinished):
            # How long a line holds is what is tried here.
            await asyncio.sleep(choose.uniform(0.3, 2.0))
            cuts += getattr(network, line).cut(reset=choose.random() < 0.5)

    poor = Weather(latency_s=0.005, jitter_s=0.01, bytes_per_s=1e6)
    outcome = await run_through(tmp_path, poor, poor, storm)
    check(outcome, undisturbed)
    assert cuts >= 4
    survived.append(Survived(f"{cuts} cut or reset connections to the {line}", outcome))


@pytest.mark.chaos
@pytest.mark.timeout(240)
async def test_agents_on_half_open_connections_notice_it_and_connect_again(
    undisturbed: Outcome, survived: list[Survived], tmp_path: Path
) -> None:
    frozen = 0

    async def storm(network: Network) -> None:
        nonlocal frozen
        await network.chaos.until(UpdateSubmitted)
        frozen = network.broker.freeze()

    outcome = await run_through(tmp_path, Weather(), Weather(), storm)
    check(outcome, undisturbed)
    assert frozen == len(AGENTS)
    survived.append(Survived("half-open connections of all agents to the broker", outcome))
