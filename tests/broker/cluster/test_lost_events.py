"""An event that a damaged store has lost ends the run that needs it, with the reason and in seconds; others go on."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import httpx
import pytest

from agents.cli.run_setup import RunSources, start_run
from agents.dispatcher import service as dispatcher
from agents.gateway.service import running_gateway
from agents.gateway.settings import GatewaySettings
from agents.labeller import service as labeller
from agents.runtime.tasks import background
from agents.words.events import ImagesLabelled, RoundStarted, RunFinished, RunStarted, TaskAssigned
from bus.broker.server import EmbeddedServer, embedded_server
from bus.client import Bus
from bus.words.envelope import Stored
from bus.words.payload import Payload
from bus.words.subjects import EVENT_STREAM, event_subject, events_of_type
from tests.broker.test_telemetry import agent
from tests.chaos.system import small
from tests.conftest import wait_for

WITHIN_S = 20.0
USERS = 2


async def until(bus: Bus, kind: type[Payload], count: int, run: str = "*") -> list[Stored]:
    """The first events of this type."""
    found: list[Stored] = []
    async with asyncio.timeout(WITHIN_S), bus.follow(events_of_type(kind.TYPE, run)) as items:
        async for item in items:
            found += [item] if isinstance(item, Stored) else []
            if len(found) == count:
                break
    return found


def damage(store: Path, subject: str) -> None:
    """Changes a byte of the event on this subject."""
    (block,) = store.rglob(f"{EVENT_STREAM}/msgs/*.blk")
    body = bytearray(block.read_bytes())
    place = body.find(subject.encode())
    assert place > 0
    # Behind its subject comes the event itself.
    body[place + len(subject) + 20] ^= 1
    block.write_bytes(body)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("lost", [RunStarted, RoundStarted, ImagesLabelled])
async def test_a_run_that_needs_a_lost_event_fails_with_the_reason_and_another_goes_on(
    tmp_path: Path, lost: type[Payload], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = tmp_path / "nats"
    async with embedded_server(store) as server, Bus.connect(server.settings, name="test", wait_s=10) as bus:
        for run in ("hurt", "sound"):
            await start_run(bus, run, small(users=USERS, images=1), RunSources())
            await bus.publish(RoundStarted(run=run, round=1))
        async with background(labeller.serve(bus, asyncio.Event())):
            await until(bus, ImagesLabelled, 2 * USERS)
        hurt = (await until(bus, lost, 1, run="hurt"))[0]
    damage(store, event_subject(hurt.event.data))
    async with embedded_server(store) as server, Bus.connect(server.settings, name="test", wait_s=10) as bus:
        async with agent("dispatcher", dispatcher.serve, server.settings, monkeypatch, caplog) as http:
            (ended,) = await until(bus, RunFinished, 1, "hurt")
            await until(bus, TaskAssigned, USERS, "sound")
            said = (await http.get("/readyz")).text
        assert isinstance(ended.event.data, RunFinished)
        assert ended.event.data.status == "failed"
        assert f"lost events: {hurt.sequence}" in ended.event.data.reason
        assert f"event {hurt.sequence} of the stream cannot be read" in said
        assert await bus.find(events_of_type(RunFinished.TYPE, "sound")) is None


@pytest.mark.timeout(120)
async def test_watch_and_verify_name_a_lost_event_and_go_on(tmp_path: Path) -> None:
    store = tmp_path / "nats"
    async with embedded_server(store) as server, Bus.connect(server.settings, name="test", wait_s=10) as bus:
        await start_run(bus, "hurt", small(users=USERS, images=1), RunSources())
        lost = await bus.publish(RoundStarted(run="hurt", round=1))
        await bus.publish(RunFinished(run="hurt", status="completed", rounds=0))
    damage(store, event_subject(RoundStarted(run="hurt", round=1)))
    async with embedded_server(store) as server:
        watching, verifying = command(server, "watch", "hurt", "--json"), command(server, "verify", "hurt")
        watched, verified = await asyncio.gather(watching, verifying)
    assert f"event {lost.sequence} of the stream cannot be read" in watched
    assert "run.finished" in watched
    assert f"the stream has no event {lost.sequence}" in verified


@pytest.mark.timeout(120)
async def test_a_lost_start_is_named_by_watch_and_by_the_gateway(tmp_path: Path) -> None:
    store = tmp_path / "nats"
    async with embedded_server(store) as server, Bus.connect(server.settings, name="test", wait_s=10) as bus:
        await start_run(bus, "hurt", small(users=USERS, images=1), RunSources())
        await bus.publish(RoundStarted(run="hurt", round=1))
        (lost,) = await until(bus, RunStarted, 1)
    damage(store, event_subject(lost.event.data))
    async with embedded_server(store) as server, Bus.connect(server.settings, name="test", wait_s=10) as bus:
        watched, unknown = await asyncio.gather(command(server, "watch", "hurt"), command(server, "watch", "never"))
        settings = GatewaySettings(port=0, spool_dir=tmp_path / "spool", static_dir=tmp_path)
        async with running_gateway(bus, settings) as url, httpx.AsyncClient(base_url=url) as http:

            async def told() -> bool:
                answer = await http.get("/readyz")
                named = f"event {lost.sequence} of the stream cannot be read" in answer.text
                return named and answer.status_code == 200

            await wait_for(told, within_s=WITHIN_S)
    assert "[run_start_lost]" in watched
    assert f"event {lost.sequence} of the stream cannot be read" in watched
    assert "[run_unknown]" in unknown


async def command(server: EmbeddedServer, *words: str) -> str:
    """All that ``fedbus WORDS`` says until it ends."""
    settings = server.settings
    assert settings.token is not None
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "agents.cli", *words),
        env={**os.environ, "NATS_URL": settings.url, "NATS_TOKEN": settings.token.get_secret_value(), "COLUMNS": "200"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(3 * WITHIN_S):
        said, _ = await process.communicate()
    return said.decode()
