"""A broker for each test: the agent's durable consumer would otherwise see the runs of other tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from bus.broker.server import embedded_server
from bus.client import Bus


@pytest_asyncio.fixture
async def bus(tmp_path: Path) -> AsyncIterator[Bus]:
    """A bus connected to a broker of its own."""
    async with (
        embedded_server(tmp_path / "nats") as server,
        Bus.connect(server.settings, name="test", wait_s=10) as connected,
    ):
        yield connected
