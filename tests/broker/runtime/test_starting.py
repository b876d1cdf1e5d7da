"""What an agent reads when it starts: what is open, however many runs there have been."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from agents.cli.runs import RunNameTakenError, check_free
from agents.core.rounds.settling import SETTLE_EVERY
from agents.dispatcher.service import Dispatcher
from agents.runtime.past import Past, read_past, starts_and_ends
from agents.runtime.tasks import background
from agents.words.events import OpenRun, RoundStarted, RunFinished, RunsSettled
from agents.words.run_config import RunDataset, UserShard
from bus.broker.server import EmbeddedServer, embedded_server
from bus.client import Bus
from bus.words.payload import Payload
from bus.words.subjects import EVENT_STREAM, EVENTS, events_of_type
from tests.builders import config, run_started
from tests.conftest import wait_for

RUNS = 3 * SETTLE_EVERY + 7


@pytest_asyncio.fixture
async def nats(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EmbeddedServer]:
    async with embedded_server(tmp_path_factory.mktemp("starting")) as server:
        yield server


def begin_and_end(run: str) -> list[Payload]:
    started = run_started(config()).model_copy(update={"run": run})
    end = RunFinished(run=run, status="completed", rounds=1)
    return [started, RoundStarted(run=run, round=1), end]


async def settled(bus: Bus) -> RunsSettled | None:
    found = await bus.newest(events_of_type(RunsSettled.TYPE))
    return found.event.data if found is not None and isinstance(found.event.data, RunsSettled) else None


async def read_anew(nats: EmbeddedServer) -> tuple[Past, int]:
    """What a start finds, and how many messages the broker sent for it."""
    async with Bus.connect(nats.settings, name="test", wait_s=10) as bus:
        before = bus.connection.nc.stats["in_msgs"]
        past = await read_past(bus)
        return past, bus.connection.nc.stats["in_msgs"] - before


async def dispatched(nats: EmbeddedServer, *, until_settled_after: int) -> RunsSettled:
    """Two dispatchers at a time, until what is open has been said."""
    async with (
        Bus.connect(nats.settings, name="one", wait_s=10) as one,
        Bus.connect(nats.settings, name="two", wait_s=10) as two,
        background(Dispatcher(one).serve()),
        background(Dispatcher(two).serve()),
    ):

        async def said() -> RunsSettled | None:
            newest = await settled(one)
            return newest if newest is not None and newest.sequence > until_settled_after else None

        found = await wait_for(said)
        assert found is not None
        return found


async def test_a_start_reads_what_is_open_however_many_runs_are_over(nats: EmbeddedServer) -> None:
    async with Bus.connect(nats.settings, name="test", wait_s=10) as bus:
        everything = [one for number in range(RUNS) for one in begin_and_end(f"run-{number}")]
        await bus.publish_many(everything)
        whole, all_messages = await read_anew(nats)
        assert len(whole.runs) == 2 * RUNS
        first = await dispatched(nats, until_settled_after=0)
        assert (first.sequence, first.open) == (3 * RUNS, ())
        past, messages = await read_anew(nats)
        assert (past.after, past.runs) == (3 * RUNS, ())
        assert messages < 20 < all_messages
        # Whoever lists them all still finds them.
        assert tuple([one async for one in starts_and_ends(bus)]) == whole.runs

        # What is left open is where a start begins, whatever ends after it; two dispatchers say it once.
        shard = await bus.objects.put(b"shard")
        dataset = RunDataset(classes=("a", "b"), users=(UserShard(user="u0", shard=shard),), held_out=shard)
        ref = await bus.objects.put(dataset.model_dump_json().encode())
        opened = await bus.publish(run_started(config()).model_copy(update={"run": "left-open", "dataset": ref}))
        later = [one for number in range(SETTLE_EVERY) for one in begin_and_end(f"later-{number}")]
        await bus.publish_many(later)
        second = await dispatched(nats, until_settled_after=first.sequence)
        assert second.open == (OpenRun(run="left-open", sequence=opened.sequence),)
        past, messages = await read_anew(nats)
        assert (past.after, past.runs) == (opened.sequence - 1, ())
        assert messages < 20
        end = await bus.publish(RunFinished(run="left-open", status="cancelled", rounds=0))
        past, _ = await read_anew(nats)
        assert past.after == end.sequence

        # A name of long ago stays taken, and nobody starts a round of it.
        with pytest.raises(RunNameTakenError):
            await check_free(bus, "run-0")


async def test_what_cannot_be_read_as_the_newest_word_on_what_is_open_makes_a_start_longer_and_nothing_else(
    nats: EmbeddedServer,
) -> None:
    async with Bus.connect(nats.settings, name="test", wait_s=10) as bus:
        await bus.publish_many(begin_and_end("one"))
        await bus.connection.js.publish("ev.one.runs.settled", b"{}")
        past, _ = await read_anew(nats)
        assert (past.after, len(past.runs)) == (3, 2)


@pytest.mark.timeout(60)
async def test_what_a_damaged_store_lost_of_a_run_that_is_over_is_no_longer_asked_for_and_of_an_open_one_it_is(
    tmp_path: Path,
) -> None:
    store = tmp_path / "nats"
    async with embedded_server(store) as server, Bus.connect(server.settings, name="test", wait_s=10) as bus:
        await bus.publish_many([one for number in range(SETTLE_EVERY) for one in begin_and_end(f"run-{number}")])
        shard = await bus.objects.put(b"shard")
        dataset = RunDataset(classes=("a", "b"), users=(UserShard(user="u0", shard=shard),), held_out=shard)
        ref = await bus.objects.put(dataset.model_dump_json().encode())
        opened = await bus.publish(run_started(config()).model_copy(update={"run": "left-open", "dataset": ref}))
        first = await dispatched(server, until_settled_after=0)
        assert first.open == ()
        asked = await bus.publish(RoundStarted(run="left-open", round=1))
        await bus.publish_many(begin_and_end("later"))
    (block,) = store.rglob(f"{EVENT_STREAM}/msgs/*.blk")

    def flip(what: bytes) -> None:
        body = bytearray(block.read_bytes())
        body[body.index(what) + len(what) // 2] ^= 1
        block.write_bytes(body)

    flip(b"ev.run-7.run.started")
    async with embedded_server(store) as server, Bus.connect(server.settings, name="test", wait_s=10) as bus:
        assert (await read_past(bus)).after == opened.sequence - 1
        assert bus.unreadable == ()
        # Whoever reads all of it meets the gap.
        assert len([one async for one in starts_and_ends(bus)]) == 2 * (SETTLE_EVERY + 1)
        assert len(bus.unreadable) == 1
    flip(b"ev.left-open.round.started.1")
    async with embedded_server(store) as server, Bus.connect(server.settings, name="test", wait_s=10) as bus:
        past = await read_past(bus)
        assert past.after == opened.sequence - 1
        async with bus.follow(EVENTS, after=past.after, live=False) as items:
            async for _ in items:
                pass
        assert bus.unreadable == (asked.sequence,)
