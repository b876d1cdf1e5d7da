"""One byte of a store that another one was written over: what cannot be read is named, and nobody waits for it."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agents.audit.verify import verify_runs
from agents.words.events import RoundStarted
from bus.broker.cluster import embedded_cluster, places, store_of
from bus.broker.server import embedded_server
from bus.broker.topology import OBJECT_STREAM
from bus.client import Bus
from bus.errors import ObjectCorruptError, ObjectMissingError, ServerStartError
from bus.stream.event_reader import EventReader
from bus.words.envelope import Stored
from bus.words.subjects import EVENT_STREAM, EVENTS, events_of
from tests.chaos.torn import leader_of
from tests.conftest import wait_for

EVENTS_SAID = 60
DATA = b"fedbus" * 300_000
WITHIN_S = 25.0


@contextlib.asynccontextmanager
async def damaged(folder: Path, stream: str, at: float | None = None, *, seed: int = 0) -> AsyncIterator[Bus]:
    """A bus whose broker was stopped, and one byte of this stream's blocks changed, at this share of its length."""
    store = folder / "nats"
    async with embedded_server(store) as server, Bus.connect(server.settings, name="test", wait_s=10) as bus:
        await bus.publish_many(RoundStarted(run=f"run-{n % 2}", round=n + 1) for n in range(EVENTS_SAID))
        await bus.objects.put(DATA)
    blocks = sorted(store.rglob(f"{stream}/msgs/*.blk"))
    choose = random.Random(f"{stream} {seed}")
    block = choose.choice(blocks)
    body = bytearray(block.read_bytes())
    place = choose.randrange(len(body)) if at is None else min(len(body) - 1, int(at * len(body)))
    body[place] ^= 1 << choose.randrange(8)
    block.write_bytes(body)
    async with embedded_server(store) as server, Bus.connect(server.settings, name="test", wait_s=10) as bus:
        yield bus


async def read(bus: Bus, filter_: str) -> tuple[list[int], list[int]]:
    """The sequences that a reader found, and those that it says are missing."""
    async with bus.follow(filter_, live=False) as items:
        assert isinstance(items, EventReader)
        return [one.sequence async for one in items if isinstance(one, Stored)], items.missing


def flip(block: Path, place: int) -> None:
    body = bytearray(block.read_bytes())
    body[place] ^= 1
    block.write_bytes(body)


@pytest.mark.chaos
@pytest.mark.timeout(180)
async def test_what_one_replica_has_lost_of_an_object_is_read_from_the_leader(tmp_path: Path) -> None:
    brokers = places(3)
    async with (
        embedded_cluster(tmp_path / "nats", brokers) as cluster,
        Bus.connect(cluster.settings_for(), name="test", wait_s=20) as bus,
    ):
        ref = await bus.objects.put(DATA)
    # In the middle of its first chunk.
    hurt = brokers[1]
    assert hurt is not None
    flip(next(store_of(tmp_path / "nats", hurt).rglob(f"{OBJECT_STREAM}/msgs/1.blk")), 200_000)
    async with embedded_cluster(tmp_path / "nats", brokers) as cluster:
        here = cluster.settings_for().model_copy(update={"url": cluster.servers[1].url})
        async with Bus.connect(here, name="test", wait_s=20) as bus:

            async def another_leads() -> bool:
                leader = await leader_of(bus, OBJECT_STREAM)
                if leader == hurt.name:
                    await bus.connection.nc.request(f"$JS.API.STREAM.LEADER.STEPDOWN.{OBJECT_STREAM}", timeout=5)
                return leader != hurt.name

            await wait_for(another_leads, within_s=30)
            async with asyncio.timeout(WITHIN_S):
                assert await bus.objects.get(ref) == DATA
                start, end = len(DATA) // 2, len(DATA) - 7
                async with contextlib.aclosing(bus.objects.stream(ref, start=start, end=end)) as chunks:
                    assert b"".join([chunk async for chunk in chunks]) == DATA[start:end]
                await bus.objects.fetch_to(ref, tmp_path / "whole")
                assert (tmp_path / "whole").read_bytes() == DATA


@pytest.mark.timeout(90)
@pytest.mark.parametrize("at", [0.0, 0.5, 1.0], ids=["first", "middle", "last"])
async def test_an_event_that_cannot_be_read_is_named_and_the_others_are_read(tmp_path: Path, at: float) -> None:
    async with damaged(tmp_path, EVENT_STREAM, at) as bus:
        last = await bus.last_sequence()
        async with asyncio.timeout(WITHIN_S):
            found, missing = await read(bus, EVENTS)
            parts = [await read(bus, events_of(run)) for run in ("run-0", "run-1")]
        assert sorted(found + missing) == list(range(1, last + 1))
        assert sorted(parts[0][0] + parts[1][0]) == found
        # The reader whose event it was names it, and both where the broker does not know its subject any more.
        assert {one for _, lost in parts for one in lost} == set(missing)
        assert bus.unreadable == tuple(missing)
        # A whole event, or, where the end of the file was cut off with it, none of those that are left.
        assert len(missing) == 1 or last < EVENTS_SAID


@pytest.mark.timeout(180)
@pytest.mark.parametrize("seed", range(4))
async def test_whichever_byte_of_the_events_is_damaged_verify_says_what_it_cannot_read(
    tmp_path: Path, seed: int
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        try:
            bus = await stack.enter_async_context(damaged(tmp_path, EVENT_STREAM, seed=seed))
        except ServerStartError as error:
            # Where the length of a record is damaged, nats-server itself may never end reading.
            refused = error.message
        else:
            refused = ""
        if refused:
            assert f"files of {EVENT_STREAM}" in refused
            return
        async with asyncio.timeout(2 * WITHIN_S):
            _, missing = await read(bus, EVENTS)
            verdicts = await verify_runs(bus, ["run-0", "run-1"])
            for run in verdicts:
                await read(bus, events_of(run))
        for verdict in verdicts.values():
            said = " ".join(str(problem) for problem in verdict.problems)
            assert all(str(sequence) in said for sequence in missing)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("seed", range(4))
async def test_whichever_byte_of_an_object_is_damaged_it_is_refused_within_seconds_or_whole(
    tmp_path: Path, seed: int
) -> None:
    async with damaged(tmp_path, OBJECT_STREAM, seed=seed) as bus:
        async with asyncio.timeout(WITHIN_S):
            with contextlib.suppress(ObjectMissingError, ObjectCorruptError):
                for entry in await bus.objects.bucket.entries():
                    assert await bus.objects.get(entry.meta.name.removeprefix("sha256-")) == DATA
        # Putting it again heals it.
        async with asyncio.timeout(WITHIN_S):
            assert await bus.objects.get(await bus.objects.put(DATA)) == DATA
