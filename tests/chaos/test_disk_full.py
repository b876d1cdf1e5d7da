"""The broker's disk fills up in the middle of a run: everybody waits, and goes on once there is room."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from pathlib import Path

import nats
import pytest

from agents.cli.client_mix import ClientMix
from agents.words.events import TaskAssigned
from bus.broker.server import find_nats_server
from bus.broker.settings import BusSettings
from tests.chaos.conftest import Survived
from tests.chaos.network import agents_on
from tests.chaos.system import Chaos, Outcome, run_to_the_end, small
from tests.conftest import wait_for

FULL, WAITING = "resource limits exceeded", "insufficient resources"
"""What the broker logs, and what the gateway hears and waits out, wherever in an update's way it stands."""


class Broker:
    """A broker whose room for data is what the test says."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        with socket.create_server(("127.0.0.1", 0)) as taken:
            self._port = taken.getsockname()[1]
        self.url = f"nats://127.0.0.1:{self._port}"
        self.log = folder / "log"
        self._folder = folder
        self._process: asyncio.subprocess.Process | None = None

    async def start(self, room: int) -> None:
        """Starts it, in place of the one that runs, with room for so many bytes of messages."""
        await self.stop()
        config = self._folder / "config"
        config.write_text(
            f"""host: "127.0.0.1"
port: {self._port}
log_file: "{self.log}"
jetstream {{
  store_dir: "{self._folder}"
  max_file_store: {room}
}}
"""
        )
        self._process = await asyncio.create_subprocess_exec(find_nats_server(), "-c", str(config))

    async def stop(self) -> None:
        """Stops it."""
        if self._process is not None:
            self._process.terminate()
            async with asyncio.timeout(20):
                await self._process.wait()
            self._process = None

    async def used(self) -> int:
        """Bytes of all messages that it keeps."""
        client = await nats.connect(self.url)
        try:
            return (await client.jetstream().account_info()).storage
        finally:
            await client.close()


@pytest.mark.chaos
@pytest.mark.timeout(240)
async def test_a_full_disk_delays_a_run_and_changes_nothing(
    undisturbed: Outcome, survived: list[Survived], tmp_path: Path
) -> None:
    broker = Broker(tmp_path / "broker")
    async with contextlib.AsyncExitStack() as stack:
        await broker.start(1 << 30)
        stack.push_async_callback(broker.stop)
        chaos = await stack.enter_async_context(
            agents_on(broker.url, tmp_path, bus=BusSettings(url=broker.url), passwords={})
        )

        async def fill_up(on: Chaos) -> None:
            # Before any update: their objects are what has no room.
            await on.until(TaskAssigned)
            await broker.start(await broker.used() + 10_000)
            await wait_for(lambda: FULL in broker.log.read_text(), within_s=60)
            await wait_for(lambda: WAITING in (on.system.logs / "gateway.log").read_text(), within_s=60)
            await broker.start(1 << 30)

        chaos.system.start_clients(ClientMix(native=2))
        outcome = await run_to_the_end(chaos, small(), fill_up)
    assert outcome.status == "completed"
    assert outcome.restarts == {}
    assert outcome.models == undisturbed.models
    assert outcome.verdict.problems == []
    survived.append(Survived("a full disk of the broker", outcome))
