"""A connection is closed with its last words said, and without a traceback where the broker no longer listens."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
from datetime import UTC, datetime
from pathlib import Path

import pytest

from agents.words.events import Heartbeat
from bus.broker.server import EmbeddedServer, embedded_server
from bus.client import Bus


async def test_a_connection_to_a_frozen_broker_is_closed_without_a_traceback(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with embedded_server(tmp_path) as server:
        assert isinstance(server, EmbeddedServer)
        try:
            async with Bus.connect(server.settings, name="test", wait_s=10) as bus:
                os.kill(server.pid, signal.SIGSTOP)
                assert bus.statistics().connected
        finally:
            os.kill(server.pid, signal.SIGCONT)
    # What was left behind complains when it is thrown away.
    gc.collect()
    assert "never retrieved" not in caplog.text


async def test_what_was_said_last_is_heard(tmp_path: Path) -> None:
    async with (
        embedded_server(tmp_path) as server,
        Bus.connect(server.settings, name="hears", wait_s=10) as bus,
        bus.hear(Heartbeat) as heard,
    ):
        async with Bus.connect(server.settings, name="says", wait_s=10) as leaving:
            for index in range(500):
                await leaving.say(Heartbeat(role="evaluator", id=str(index), time=datetime.now(UTC), uptime_s=1.0))
        async with asyncio.timeout(10):
            async for beat in heard:
                if beat.id == "499":
                    break
