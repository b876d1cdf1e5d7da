"""The README's ten lines of plain nats-py do what it says."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path

import pytest

from bus.client import Bus
from bus.events import RoundStarted
from bus.server import EmbeddedServer
from bus.subjects import event_subject
from tests.conftest import wait_for

README = Path(__file__).parents[3] / "README.md"
SNIPPETS = [
    code for code in re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL) if "nats.connect" in code
]


async def start(code: str, nats: EmbeddedServer, run: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        code.replace("shop", run),
        env={**os.environ, "NATS_URL": nats.url, "NATS_TOKEN": nats.token, "PYTHONUNBUFFERED": "1"},
        stdout=asyncio.subprocess.PIPE,
    )


async def test_the_first_snippet_starts_a_round_and_the_second_sees_it(
    nats: EmbeddedServer, bus: Bus, unique_run: str
) -> None:
    starting, watching = SNIPPETS
    watcher = await start(watching, nats, unique_run)
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
        starter = await start(starting, nats, unique_run)
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
