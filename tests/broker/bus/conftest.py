"""A plain NATS client beside the bus, for what the bus would never do."""

from __future__ import annotations

from collections.abc import AsyncIterator

import nats.aio.client
import pytest_asyncio
from nats.js import JetStreamContext

from bus.events import RoundFailed
from bus.server import EmbeddedServer


@pytest_asyncio.fixture
async def raw(nats: EmbeddedServer) -> AsyncIterator[JetStreamContext]:
    """JetStream as any other program would use it."""
    client = nats_client()
    await client.connect(nats.url, token=nats.token)
    yield client.jetstream()
    await client.close()


def nats_client() -> nats.aio.client.Client:
    """An unconnected client."""
    return nats.aio.client.Client()


def failed(run: str, round_: int = 1, reason: str = "why") -> RoundFailed:
    """The smallest event that can differ from another on the same subject."""
    return RoundFailed(run=run, round=round_, reason=reason)
