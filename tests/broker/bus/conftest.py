"""A broker of their own for these tests, whose runs are no runs, and a plain NATS client beside the bus."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from nats.aio.client import Client
from nats.js import JetStreamContext

from agents.words.events import RoundFailed
from bus.broker.server import EmbeddedServer, embedded_server


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def nats(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EmbeddedServer]:
    """One nats-server for the tests of the bus."""
    async with embedded_server(tmp_path_factory.mktemp("bus")) as server:
        yield server


@pytest_asyncio.fixture
async def raw(nats: EmbeddedServer) -> AsyncIterator[JetStreamContext]:
    """JetStream as any other program would use it."""
    client = nats_client()
    await client.connect(nats.url, token=nats.token)
    yield client.jetstream()
    await client.close()


def nats_client() -> Client:
    """An unconnected client."""
    return Client()


def failed(run: str, round_: int = 1, reason: str = "why") -> RoundFailed:
    """The smallest event that can differ from another on the same subject."""
    return RoundFailed(run=run, round=round_, reason=reason)
