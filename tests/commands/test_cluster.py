"""``--cluster``: several brokers that are one, started by a command."""

from __future__ import annotations

import pytest

from agents.runtime.connection import read_connection
from bus.broker.topology import STREAMS
from bus.client import Bus
from tests.commands.conftest import Shell


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("words", "ready"),
    [
        (("broker",), "fedbus commands in this folder find it"),
        pytest.param(("up", "--port", "0"), "Start a run in another terminal", marks=pytest.mark.chaos),
    ],
    ids=["broker", "up"],
)
async def test_a_command_starts_three_brokers_that_keep_every_stream_on_each(
    shell: Shell, words: tuple[str, ...], ready: str
) -> None:
    running = await shell.start(*words, "--cluster", "3", "--nats-port", "0")
    await running.says(ready)
    agreed = read_connection(shell.folder / ".fedbus")
    assert agreed is not None
    assert len(agreed.settings().servers) == 3
    async with Bus.connect(agreed.settings(), name="test", wait_s=20) as bus:
        for stream in STREAMS:
            info = await bus.connection.persist(lambda name=stream.name: bus.connection.js.stream_info(name))  # type: ignore[misc]
            assert info.config.num_replicas == 3
    assert await running.stop() in (0, 130, 143)


async def test_another_number_of_brokers_is_refused(shell: Shell) -> None:
    assert "1, 3 or 5" in await shell.run("broker", "--cluster", "2", code=2)
