"""Whoever gives out objects gives the right bytes or a typed error: the store, a client's cache, a recording."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from agents.audit.replay import find_object
from agents.client.address import Address
from agents.client.objects import ObjectCache
from agents.words.events import RoundStarted
from bus.broker.topology import OBJECT_STREAM
from bus.client import Bus
from bus.errors import ObjectCorruptError, ObjectMissingError
from bus.objects.bucket import CHUNK
from bus.recording.files import load_recording, record
from bus.words.values import Ref
from tests.broker.bus.conftest import plant
from tests.broker.gateway.conftest import Gateway

Get = Callable[[Ref], Awaitable[bytes]]
CHECKING = ["store", "file of the store", "client", "file of the client"]
"""Those that check what they get; a recording was checked as a whole when it was loaded."""


@pytest_asyncio.fixture
async def get(request: pytest.FixtureRequest, gateway: Gateway, tmp_path: Path) -> AsyncIterator[Get]:
    """One way to an object that a gateway's broker has."""
    bus, cache = gateway.bus, ObjectCache(Address(gateway.url), tmp_path / "cache")

    async def from_file_of_the_store(ref: Ref) -> bytes:
        await bus.objects.fetch_to(ref, tmp_path / "fetched")
        return (tmp_path / "fetched").read_bytes()

    async def from_file_of_the_client(ref: Ref) -> bytes:
        return (await cache.path(ref)).read_bytes()

    async def from_recording(ref: Ref) -> bytes:
        # A recording holds what the run names, and this one names the object if there is one.
        known = ref if await bus.objects.info(ref.name) else None
        await bus.publish(RoundStarted(run="other", round=1, base_model=known))
        await record(bus, "other", tmp_path / "other.jsonl")
        return find_object(load_recording(tmp_path / "other.jsonl").objects, ref)

    ways: dict[str, Get] = {
        "store": bus.objects.get,
        "file of the store": from_file_of_the_store,
        "client": cache.get,
        "file of the client": from_file_of_the_client,
        "recording": from_recording,
    }
    try:
        yield ways[request.param]
    finally:
        await cache.close()


async def hidden(bus: Bus, data: bytes, ref: Ref) -> None:
    """Puts other bytes where the store has the object."""
    await bus.connection.js.purge_stream(OBJECT_STREAM)
    await plant(bus.connection.js, ref.name, data)


@pytest.mark.parametrize("size", [0, 1, CHUNK, 12 * CHUNK + 7])
@pytest.mark.parametrize("get", [*CHECKING, "recording"], indirect=True)
async def test_every_source_gives_the_bytes_that_were_put(gateway: Gateway, get: Get, size: int) -> None:
    data = os.urandom(size)
    assert await get(await gateway.bus.objects.put(data)) == data


@pytest.mark.usefixtures("http")
@pytest.mark.parametrize("get", [*CHECKING, "recording"], indirect=True)
async def test_every_source_says_that_an_object_is_not_there(get: Get) -> None:
    digest = hashlib.sha256(os.urandom(8)).hexdigest()
    with pytest.raises(ObjectMissingError):
        await get(Ref(name=f"sha256-{digest}", size=3, sha256=digest))


@pytest.mark.parametrize("get", CHECKING, indirect=True)
async def test_every_source_notices_a_reference_with_another_size(gateway: Gateway, get: Get) -> None:
    ref = await gateway.bus.objects.put(os.urandom(2 * CHUNK))
    with pytest.raises(ObjectCorruptError):
        await get(ref.model_copy(update={"size": ref.size - 1}))


@pytest.mark.parametrize("get", CHECKING, indirect=True)
async def test_every_source_notices_other_bytes_and_leaves_no_file(gateway: Gateway, get: Get, tmp_path: Path) -> None:
    data = os.urandom(5 * CHUNK)
    ref = await gateway.bus.objects.put(data)
    await hidden(gateway.bus, data[:CHUNK] + bytes(CHUNK) + data[2 * CHUNK :], ref)
    with pytest.raises(ObjectCorruptError):
        await get(ref)
    assert not [*tmp_path.glob("fetched*"), *(tmp_path / "cache").glob("*")]
