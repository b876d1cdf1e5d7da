"""The README's ten lines of plain nats-py do what it says."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from agents.runtime.connection import Connection, agreed_connection
from agents.words.events import RoundStarted
from bus.broker.server import embedded_server
from bus.client import Bus
from bus.words.payload import OPERATOR
from bus.words.subjects import event_subject
from tests.conftest import wait_for

README = Path(__file__).parents[3] / "README.md"
SNIPPETS = [
    code for code in re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL) if "nats.connect" in code
]


async def start(code: str, login: dict[str, str], run: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        code.replace("bazaar", run),
        env={**os.environ, **login, "PYTHONUNBUFFERED": "1"},
        stdout=asyncio.subprocess.PIPE,
    )


@pytest_asyncio.fixture
async def connection(tmp_path: Path) -> AsyncIterator[Connection]:
    """What ``fedbus broker`` leaves for whoever comes: a broker with a login for each role."""
    agreed = agreed_connection(tmp_path)
    async with embedded_server(tmp_path / "nats", passwords=agreed.passwords) as server:
        yield agreed.model_copy(update={"nats_url": server.url})


async def test_the_first_snippet_starts_a_round_and_the_second_sees_it(connection: Connection, unique_run: str) -> None:
    async with Bus.connect(connection.settings(), name="test", wait_s=10) as bus:
        await see_the_snippets_work(bus, connection.env(OPERATOR), unique_run)


async def see_the_snippets_work(bus: Bus, login: dict[str, str], unique_run: str) -> None:
    starting, watching = SNIPPETS
    watcher = await start(watching, login, unique_run)
    try:
        wanted = RoundStarted(run=unique_run, round=1)
        assert watcher.stdout is not None
        probe = asyncio.create_task(watcher.stdout.readline())
        # The watcher says nothing before it hears something: publish until it does.
        number = 2
        while not probe.done():
            await bus.publish(RoundStarted(run=unique_run, round=number))
            number += 1
            await asyncio.wait({probe}, timeout=0.2)
            assert number < 100
        assert f"ev.{unique_run}.round.started." in (await probe).decode()
        starter = await start(starting, login, unique_run)
        async with asyncio.timeout(20):
            assert await starter.wait() == 0
            stored = await wait_for(lambda: bus.find(event_subject(wanted)))
            line = ""
            while "round.started.1 " not in line:
                line = (await watcher.stdout.readline()).decode()
        assert stored.event.data == wanted
    finally:
        watcher.kill()
        await watcher.wait()


@pytest.mark.parametrize("code", SNIPPETS)
def test_each_snippet_is_about_ten_lines(code: str) -> None:
    assert len([line for line in code.splitlines() if line.strip()]) <= 13
