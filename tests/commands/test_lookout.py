"""A run that nobody works on is not silent: the commands say once what is missing, and what starts it."""

from __future__ import annotations

import pytest

from agents.cli.lookout import NO_CLIENT
from tests.commands.conftest import Shell

START = ("run", "start", "--users", "2", "--images", "2", "--rounds", "1", "--name", "shop")
NO_ROUND = "no round was started; start the first: fedbus round start shop"


@pytest.mark.timeout(180)
async def test_without_clients_each_command_says_once_how_to_start_one(shell: Shell) -> None:
    await (await shell.start("up", "--port", "0", "--nats-port", "0")).says("Stop with Ctrl-C")
    assert NO_CLIENT not in await shell.run(*START)
    watch = await shell.start("watch", "shop")
    await watch.says(NO_ROUND)
    assert (await shell.run("round", "start", "shop")).splitlines() == ["round 1 of shop started", NO_CLIENT]
    await watch.says(NO_CLIENT)
    await (await shell.start("client", "--native", "1")).says("connected to")
    assert await watch.ended(within_s=60) == 0
    assert "run completed" in watch.said
    assert [watch.said.count(line) for line in (NO_ROUND, NO_CLIENT)] == [1, 1]
    assert "no client" not in await shell.run(*START[:-1], "other", "--go")
