"""A broker of their own for these tests, whose runs are no runs, and a plain NATS client beside the bus."""

from __future__ import annotations

import base64
import hashlib
import json
import uuid
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from nats.aio.client import Client
from nats.js import JetStreamContext

from agents.words.events import RoundFailed
from bus.broker.server import EmbeddedServer, embedded_server
from bus.broker.topology import BUCKET
from bus.objects.bucket import meta_subject


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


async def plant(js: JetStreamContext, name: str, data: bytes, *, chunk: int = 128 * 1024) -> None:
    """Puts any bytes where an object of this name lies, in the format of the stock client and with its chunks."""
    nuid = uuid.uuid4().hex
    parts = [data[at : at + chunk] for at in range(0, len(data), chunk)]
    for part in parts:
        await js.publish(f"$O.{BUCKET}.C.{nuid}", part)
    meta = {"name": name, "bucket": BUCKET, "nuid": nuid, "size": len(data), "chunks": len(parts)}
    meta["digest"] = "SHA-256=" + base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode()
    await js.publish(meta_subject(name), json.dumps(meta | {"options": {"max_chunk_size": chunk}}).encode())


def nats_client() -> Client:
    """An unconnected client."""
    return Client()


def failed(run: str, round_: int = 1, reason: str = "why") -> RoundFailed:
    """The smallest event that can differ from another on the same subject."""
    return RoundFailed(run=run, round=round_, reason=reason)
