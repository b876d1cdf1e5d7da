"""What a part of the gateway that fails beside the others leaves for whoever runs it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from agents.core.exchange.messages import Pong
from agents.gateway.hub import Hub
from agents.gateway.outbox import Outbox
from agents.gateway.settings import GatewaySettings
from bus.client import Bus
from bus.errors import BrokerUnavailableError


async def test_a_part_of_the_gateway_that_fails_is_raised_as_itself(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(self: Hub) -> None:
        raise BrokerUnavailableError("gone")

    monkeypatch.setattr(Hub, "_keep_time", fails)
    with pytest.raises(BrokerUnavailableError, match="gone"):
        async with asyncio.timeout(10), Hub(bus, GatewaySettings(port=0, spool_dir=tmp_path)):
            await asyncio.Event().wait()


async def test_a_connection_goes_on_reading_when_something_else_than_its_own_errand_answers_it(
    bus: Bus, tmp_path: Path
) -> None:
    """As the end of a lease does, while the second upload of it waits for the first."""
    async with asyncio.timeout(10), Hub(bus, GatewaySettings(port=0, spool_dir=tmp_path)) as hub:
        connection = hub.connect(Outbox(), "127.0.0.1")
        connection.busy = True
        reading = asyncio.create_task(hub.receive(connection, "{}"))
        await asyncio.sleep(0)
        assert not reading.done()
        connection.busy = False
        hub.conversation.effects.say(connection, Pong())
        # The next that anything brings about.
        hub.silent(hub.connect(Outbox(), "127.0.0.1"))
        await reading
