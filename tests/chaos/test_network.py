"""Bad networks between agents and broker and between clients and gateway: runs complete with the same model."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from agents.cli.options import ClientMix
from agents.cli.system import AGENTS, agent_command, client_commands
from agents.client import runner
from agents.client.objects import ObjectCache
from agents.client.runner import Client
from agents.client.trainer import SyntheticTrainer
from agents.core.protocol import ServerMessage, UploadOffset, Welcome, parse_server_message
from bus.events import RunFinished, TaskAssigned, UpdateSubmitted
from tests.chaos.conftest import Survived
from tests.chaos.proxy import Proxy, Weather, proxied
from tests.chaos.system import LEASE_S, Chaos, Outcome, chaos_system, run_to_the_end, said, small
from tests.conftest import wait_for

POOR = Weather(latency_s=0.005, jitter_s=0.01, bytes_per_s=2e6)


def address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    return parts.hostname, parts.port


async def agents_behind(chaos: Chaos, proxy: Proxy) -> None:
    """Starts all agents again, with the proxy for a broker."""
    system = chaos.system
    system.environment["NATS_URL"] = f"nats://127.0.0.1:{proxy.port}"
    await system.processes.stop_all()
    for name in AGENTS:
        system.processes.start(agent_command(name, system.logs, system.environment))


def clients_behind(chaos: Chaos, proxy: Proxy, mix: ClientMix) -> None:
    """Starts clients, with the proxy for a gateway."""
    system = chaos.system
    connection = system.connection.model_copy(update={"gateway_url": f"http://127.0.0.1:{proxy.port}"})
    for command in client_commands(mix, connection, store=system.store, logs=system.logs, prefix="far-"):
        system.processes.start(command)


async def faults_until_the_end(chaos: Chaos, proxy: Proxy, *, seed: int, every_s: tuple[float, float]) -> None:
    """Cuts and resets in turn, at random intervals, until the run is over."""
    choose = random.Random(seed)
    while not await said(chaos.bus, RunFinished):
        await asyncio.sleep(choose.uniform(*every_s))
        choose.choice([proxy.cut, proxy.reset])()


def check(outcome: Outcome, reference: Outcome) -> None:
    assert outcome.status == "completed"
    assert outcome.models == reference.models
    assert outcome.verdict.problems == []


@pytest.mark.chaos
@pytest.mark.timeout(240)
async def test_agents_lose_the_broker_again_and_again_over_a_poor_network(
    undisturbed: Outcome, survived: list[Survived], tmp_path: Path
) -> None:
    async with (
        chaos_system(tmp_path / "system") as chaos,
        proxied(*address(chaos.system.connection.nats_url), weather=POOR) as proxy,
    ):
        await agents_behind(chaos, proxy)
        chaos.system.start_clients(ClientMix(native=2))
        outcome = await run_to_the_end(
            chaos, small(), lambda on: faults_until_the_end(on, proxy, seed=1, every_s=(0.5, 2.0))
        )
    check(outcome, undisturbed)
    assert proxy.cuts > len(AGENTS)
    survived.append(Survived(f"{proxy.cuts} cut and reset connections to the broker", outcome))


@pytest.mark.chaos
@pytest.mark.timeout(240)
async def test_clients_lose_the_gateway_again_and_again_over_a_poor_network(
    undisturbed: Outcome, survived: list[Survived], tmp_path: Path
) -> None:
    narrow = Weather(latency_s=0.005, jitter_s=0.02, bytes_per_s=3e5)
    # Longer than the longest pause before a client comes back.
    patient = {"FEDBUS_GATEWAY_LEASE_S": "10"}
    async with (
        chaos_system(tmp_path / "system", variables=patient) as chaos,
        proxied(*address(chaos.system.connection.gateway_url), weather=narrow) as proxy,
    ):
        clients_behind(chaos, proxy, ClientMix(native=2))
        outcome = await run_to_the_end(
            chaos, small(), lambda on: faults_until_the_end(on, proxy, seed=2, every_s=(0.3, 2.0))
        )
    check(outcome, undisturbed)
    assert proxy.cuts >= 2
    survived.append(Survived(f"{proxy.cuts} cut and reset connections to the gateway", outcome))


@pytest.mark.chaos
@pytest.mark.timeout(240)
async def test_clients_on_half_open_connections_lose_their_leases_and_come_back(
    undisturbed: Outcome, survived: list[Survived], tmp_path: Path
) -> None:
    async with (
        chaos_system(tmp_path / "system") as chaos,
        proxied(*address(chaos.system.connection.gateway_url)) as proxy,
    ):

        async def half_open(on: Chaos) -> None:
            await on.until(TaskAssigned)
            proxy.freeze()
            await asyncio.sleep(3 * LEASE_S + 2)
            proxy.thaw()

        clients_behind(chaos, proxy, ClientMix(native=2))
        outcome = await run_to_the_end(chaos, small(), half_open)
    check(outcome, undisturbed)
    survived.append(Survived("half-open connections to the gateway", outcome))


@pytest.mark.chaos
@pytest.mark.timeout(240)
async def test_agents_on_half_open_connections_notice_it_and_connect_again(
    undisturbed: Outcome, survived: list[Survived], tmp_path: Path
) -> None:
    async with (
        chaos_system(tmp_path / "system") as chaos,
        proxied(*address(chaos.system.connection.nats_url)) as proxy,
    ):

        async def half_open(on: Chaos) -> None:
            await on.until(UpdateSubmitted)
            proxy.freeze()
            # Two pings, ten seconds apart, have to stay without an answer.
            await asyncio.sleep(35)
            proxy.cut()
            proxy.thaw()

        await agents_behind(chaos, proxy)
        chaos.system.start_clients(ClientMix(native=2))
        outcome = await run_to_the_end(chaos, small(), half_open)
    check(outcome, undisturbed)
    survived.append(Survived("half-open connections to the broker for 35 s", outcome))


@pytest.mark.chaos
@pytest.mark.timeout(120)
async def test_an_upload_that_is_cut_goes_on_at_its_offset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[ServerMessage] = []

    def listening(text: str) -> ServerMessage:
        heard.append(parse_server_message(text))
        return heard[-1]

    monkeypatch.setattr(runner, "parse_server_message", listening)
    monkeypatch.setattr(runner, "MAX_CHUNK_BYTES", 2_048)
    async with (
        chaos_system(tmp_path / "system") as chaos,
        proxied(*address(chaos.system.connection.gateway_url)) as proxy,
        asyncio.TaskGroup() as group,
    ):
        objects = ObjectCache(chaos.system.connection.gateway_url, tmp_path / "cache")
        url = f"http://127.0.0.1:{proxy.port}"
        client = Client(url, chaos.system.connection.join_token, "far", SyntheticTrainer(objects))
        proxy.cut_after(20_000)
        training = group.create_task(client.run())
        outcome = await run_to_the_end(chaos, small(users=1, rounds=1))
        training.cancel()
        await wait_for(training.done)
        await objects.close()
    assert outcome.status == "completed"
    assert proxy.cuts == 1
    again = next(index for index, one in enumerate(heard) if isinstance(one, Welcome) and one.resumed)
    offset = next(one.offset for one in heard[again:] if isinstance(one, UploadOffset))
    assert 10_000 < offset < 20_000


async def test_the_proxy_delays_narrows_and_ends_connections() -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionResetError):
            while block := await reader.read(1 << 16):
                writer.write(block)
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    async with server, proxied(*server.sockets[0].getsockname(), weather=Weather(latency_s=0.05)) as proxy:
        reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
        began = time.monotonic()
        writer.write(b"there and back")
        assert await reader.readexactly(14) == b"there and back"
        assert time.monotonic() - began >= 0.1
        proxy.freeze()
        writer.write(b"late")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await reader.read(4)
        proxy.thaw()
        assert await reader.readexactly(4) == b"late"
        proxy.cut_after(2)
        writer.write(b"four")
        assert await reader.read() in (b"fo", b"")
        writer.close()
        _, writer = await asyncio.open_connection(proxy.host, proxy.port)
        await wait_for(lambda: len(proxy._open) == 1)
        proxy.reset()
        await wait_for(lambda: proxy.cuts == 2)
        writer.close()
