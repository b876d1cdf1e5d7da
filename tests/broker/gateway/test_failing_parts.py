"""What a part of the gateway that fails beside the others leaves for whoever runs it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from agents.gateway.hub import Hub
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
