"""Agents and clients that are told to stop do so at once, whether or not there is a broker."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import pytest

from agents.cli.here import AGENTS
from agents.runtime.connection import read_connection
from agents.runtime.stopping import GONE_S
from tests.commands.conftest import Running, Shell
from tests.conftest import wait_for

BUSY_S = 4.0
"""An agent ends itself ``GONE_S`` after the signal, whatever it waits for; the rest is for a busy machine."""


async def seconds_to_end(running: Running) -> float:
    began = time.monotonic()
    assert await running.stop() == 0, running.said
    return time.monotonic() - began


async def gone(shell: Shell, broker: Running) -> None:
    """Kills the broker as a power cut does."""
    os.killpg(broker.process.pid, signal.SIGKILL)
    await broker.ended()
    known = read_connection(shell.folder / ".fedbus")
    assert known is not None
    port = int(known.nats_url.rsplit(":", 1)[1])

    async def refused() -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            return True
        writer.close()
        return False

    await wait_for(refused)


def nats_server_of(shell: Shell) -> int:
    return int(next((shell.folder / ".fedbus" / "nats").glob("*.ports")).stem.removeprefix("nats-server_"))


@pytest.mark.parametrize("broker_now", ["there", "dead", "frozen"])
async def test_every_agent_ends_within_two_seconds(broker_now: str, shell: Shell) -> None:
    broker = await shell.start("broker", "--nats-port", "0")
    await broker.says("NATS on")
    agents = {name: await shell.start("agent", name, FEDBUS_GATEWAY_PORT="0") for name in AGENTS}
    for one in agents.values():
        await one.says("connected; ready")
    await agents["gateway"].says("listening on")
    client = await shell.start("client", "--native", "1")
    await client.says("connected to")
    await shell.run("run", "start", "--users", "9", "--images", "20", "--epochs", "100", "--name", "shop", "--go")
    await agents["dispatcher"].says("assigned 9 tasks")
    if broker_now == "dead":
        await gone(shell, broker)
        for one in agents.values():
            await one.says("lost the broker")
    elif broker_now == "frozen":
        os.kill(nats_server_of(shell), signal.SIGSTOP)
    # Each for itself: on a loaded machine those that stop together wait for each other.
    took = {name: await seconds_to_end(one) for name, one in agents.items()}
    # Its clients are processes of their own, which it waits for.
    took["client"] = await seconds_to_end(client) - 1.0
    if broker_now == "frozen":
        # Or the broker's command would wait for it at the end of the test.
        os.kill(nats_server_of(shell), signal.SIGCONT)
    assert GONE_S < 2
    assert max(took.values()) < BUSY_S, took


async def test_all_at_once_with_the_broker_among_them_are_gone_in_time_and_log_no_error(shell: Shell) -> None:
    broker = await shell.start("broker", "--nats-port", "0")
    await broker.says("NATS on")
    running = [broker, *[await shell.start("agent", name, FEDBUS_GATEWAY_PORT="0") for name in AGENTS]]
    for one in running[1:]:
        await one.says("connected; ready")
    await running[-1].says("listening on")
    running += [await shell.start("client", "--native", "1") for _ in range(2)]
    for one in running[-2:]:
        await one.says("connected to")
    began = time.monotonic()
    for one in running:
        one.process.send_signal(signal.SIGTERM)
    assert [await one.ended() for one in running] == [0] * len(running)
    # They wait for each other: there are fewer cores than processes.
    assert time.monotonic() - began < 2 * BUSY_S
    assert [one.said for one in running if "ERROR" in one.said or "Traceback" in one.said] == []


@pytest.mark.usefixtures("usual_ports")
async def test_an_agent_that_never_had_a_broker_ends_within_two_seconds(shell: Shell) -> None:
    agent = await shell.start("agent", "dispatcher")
    await agent.says("no broker")
    assert await seconds_to_end(agent) < BUSY_S
