"""The health check says whether an agent beats."""

from __future__ import annotations

import asyncio

from agents.runtime.health import beats
from agents.runtime.process import run_agent
from agents.runtime.tasks import background
from bus.broker.server import EmbeddedServer
from bus.broker.settings import BusSettings
from bus.client import Bus


async def idle(bus: Bus, stop: asyncio.Event) -> None:
    await stop.wait()


async def test_an_agent_that_beats_is_healthy_and_one_that_does_not_is_not(nats: EmbeddedServer) -> None:
    async with background(run_agent("idle", idle, look=lambda: nats.settings)):
        assert await beats("idle", nats.settings, within_s=20)
        assert not await beats("absent", nats.settings, within_s=0.5)


async def test_nothing_is_healthy_without_a_broker() -> None:
    assert not await beats("idle", BusSettings(url="nats://127.0.0.1:9"), within_s=0.5)
