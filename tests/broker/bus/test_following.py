import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from agents.words.events import Heartbeat, Progress, RoundFailed
from bus.broker.direct_get import stream_state
from bus.broker.server import EmbeddedServer, embedded_server
from bus.broker.settings import BusSettings
from bus.client import Bus, CaughtUp
from bus.errors import BrokerUnavailableError
from bus.stream import event_reader
from bus.words.envelope import Stored
from bus.words.subjects import events_of
from tests.broker.bus.conftest import failed
from tests.conftest import wait_for


async def all_of(bus: Bus, run: str, after: int = 0) -> list[Stored | CaughtUp]:
    async with bus.follow(events_of(run), after=after, live=False) as items:
        return [item async for item in items]


def rounds(items: list[Stored | CaughtUp]) -> list[int]:
    return [
        item.event.data.round for item in items if isinstance(item, Stored) and isinstance(item.event.data, RoundFailed)
    ]


async def test_a_follower_reads_what_there_is_then_says_so_then_waits_for_more(bus: Bus, unique_run: str) -> None:
    await bus.publish_many(failed(unique_run, number) for number in range(3))
    async with asyncio.timeout(10), bus.follow(events_of(unique_run)) as items:
        seen = [await anext(items) for _ in range(4)]
        assert isinstance(seen[3], CaughtUp)
        last = await bus.publish(failed(unique_run, 3))
        new = await anext(items)
    assert rounds(seen) == [0, 1, 2]
    assert isinstance(new, Stored)
    assert new.sequence == last.sequence


async def test_an_empty_run_is_caught_up_at_once(bus: Bus, unique_run: str) -> None:
    async with asyncio.timeout(10):
        assert [type(item) for item in await all_of(bus, unique_run)] == [CaughtUp]


async def test_a_late_reader_can_begin_after_any_sequence(bus: Bus, unique_run: str) -> None:
    published = await bus.publish_many(failed(unique_run, number) for number in range(5))
    assert rounds(await all_of(bus, unique_run, after=published[2].sequence)) == [3, 4]


async def test_more_events_than_a_batch_arrive_in_order(bus: Bus, unique_run: str) -> None:
    await bus.publish_many(failed(unique_run, number) for number in range(1200))
    assert rounds(await all_of(bus, unique_run)) == list(range(1200))


@contextlib.asynccontextmanager
async def following(bus: Bus, run: str) -> AsyncIterator[list[Stored | CaughtUp]]:
    """What a follower in the background has read so far."""
    seen: list[Stored | CaughtUp] = []

    async def read() -> None:
        async with bus.follow(events_of(run)) as items:
            async for item in items:
                seen.append(item)

    task = asyncio.create_task(read())
    try:
        yield seen
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_follower_and_a_publisher_continue_across_a_killed_broker_without_gap_or_duplicate(
    tmp_path: Path, unique_run: str
) -> None:
    async with embedded_server(tmp_path / "store") as first:
        port = first.port
        connecting = Bus.connect(first.settings, name="test", wait_s=10)
        bus = await connecting.__aenter__()
        reading = following(bus, unique_run)
        seen = await reading.__aenter__()
        await bus.publish_many(failed(unique_run, number) for number in range(50))
        await wait_for(lambda: len(seen) >= 20)
        first.process.send_signal(signal.SIGKILL)
        await first.wait()
    publishing = asyncio.create_task(bus.publish_many(failed(unique_run, number) for number in range(50, 100)))
    async with embedded_server(tmp_path / "store", port=port):
        published = await asyncio.wait_for(publishing, 20)
        await wait_for(lambda: len(seen) >= 101)
        await reading.__aexit__(None, None, None)
        assert bus.statistics().losses == 1
        await connecting.__aexit__(None, None, None)
    assert all(one.created for one in published)
    assert rounds(seen) == list(range(100))
    assert sum(isinstance(item, CaughtUp) for item in seen) == 1


async def test_a_single_publish_waits_for_the_broker_to_come_back(tmp_path: Path, unique_run: str) -> None:
    async with contextlib.AsyncExitStack() as stack:
        async with embedded_server(tmp_path / "store") as first:
            bus = await stack.enter_async_context(Bus.connect(first.settings, name="test", wait_s=10))
        publishing = asyncio.create_task(bus.publish(failed(unique_run)))
        await wait_for(lambda: not bus.statistics().connected)
        await bus.say(Heartbeat(role="r", id="i", time="2026-01-01T00:00:00Z", uptime_s=0))
        assert bus.statistics().unsaid == 1
        await stack.enter_async_context(embedded_server(tmp_path / "store", port=first.port))
        assert (await asyncio.wait_for(publishing, 20)).created
        await stack.pop_all().aclose()


async def test_live_progress_reaches_its_run_only_and_is_counted_when_malformed(bus: Bus, unique_run: str) -> None:
    said = Progress(run=unique_run, round=1, user="u", client="c", phase="train", images_seen=3)
    async with asyncio.timeout(10), bus.hear(Progress, run=unique_run) as items:
        await bus.say(said.model_copy(update={"run": f"{unique_run}-2"}))
        await bus.connection.nc.publish(f"progress.{unique_run}.1.u", b"garbage")
        await bus.connection.nc.flush()
        await bus.say(said)
        assert await anext(items) == said
        assert items.malformed == 1


@contextlib.asynccontextmanager
async def wire_to(server: EmbeddedServer) -> AsyncIterator[tuple[BusSettings, bytearray]]:
    """The way to the broker, and all that goes there on it, in its order."""
    sent = bytearray()

    passing: set[asyncio.Task[None] | None] = set()

    async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter, kept: bytearray) -> None:
        with contextlib.closing(target):
            while data := await source.read(65_536):
                kept += data
                target.write(data)

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        passing.add(asyncio.current_task())
        place = urlsplit(server.settings.url)
        there, back = await asyncio.open_connection(place.hostname, place.port)
        await asyncio.gather(copy(reader, back, sent), copy(there, writer, bytearray()))
        await asyncio.gather(back.wait_closed(), writer.wait_closed(), return_exceptions=True)

    listener = await asyncio.start_server(accept, "127.0.0.1", 0)
    async with listener:
        port = listener.sockets[0].getsockname()[1]
        yield server.settings.model_copy(update={"url": f"nats://127.0.0.1:{port}"}), sent
        async with asyncio.timeout(10):
            await asyncio.gather(*(one for one in passing if one is not None))


async def test_whoever_listens_live_goes_on_only_when_the_broker_has_its_subscription(
    nats: EmbeddedServer, unique_run: str
) -> None:
    async with (
        wire_to(nats) as (settings, sent),
        Bus.connect(settings, name="test", wait_s=10) as bus,
        bus.hear(Progress, run=unique_run),
    ):
        # It asked for an answer behind the subscription: an answer to what came before it proves nothing.
        assert b"PING" in sent[sent.index(f"SUB progress.{unique_run}".encode()) :]


async def test_what_another_connection_says_as_soon_as_somebody_listens_is_heard(
    nats: EmbeddedServer, bus: Bus, unique_run: str
) -> None:
    said = Progress(run=unique_run, round=1, user="u", client="c", phase="train", images_seen=3)
    async with asyncio.timeout(60), Bus.connect(nats.settings, name="other", wait_s=10) as other:
        for number in range(100):
            this = said.model_copy(update={"run": f"{unique_run}-{number}"})
            async with bus.hear(Progress, run=this.run) as items:
                await other.say(this)
                assert await anext(items) == this


async def test_heartbeats_of_all_agents_arrive(bus: Bus) -> None:
    beat = Heartbeat.model_validate(
        {"role": "tester", "id": "1", "time": "2026-01-01T00:00:00Z", "uptime_s": 1.5, "state": {"queue": 3}}
    )
    async with asyncio.timeout(10), bus.hear(Heartbeat) as items:
        await bus.say(beat)
        assert await anext(items) == beat


async def test_a_slow_reader_of_progress_misses_the_oldest_and_knows_how_many(bus: Bus, unique_run: str) -> None:
    async with asyncio.timeout(20), bus.hear(Progress, run=unique_run) as items:
        for number in range(4100):
            await bus.say(Progress(run=unique_run, round=1, user="u", client="c", phase="train", images_seen=number))
        await wait_for(lambda: items.dropped == 4)
        assert (await anext(items)).images_seen == 4


async def test_readers_of_a_closed_connection_end_with_an_error(nats: EmbeddedServer, unique_run: str) -> None:
    async with Bus.connect(nats.settings, name="test", wait_s=10) as bus, bus.hear(Progress, run=unique_run) as items:
        reading = asyncio.ensure_future(anext(items))
        await asyncio.sleep(0)
        await bus.connection.nc.close()
        results = await asyncio.wait_for(asyncio.gather(reading, return_exceptions=True), 10)
    assert isinstance(results[0], BrokerUnavailableError)


async def test_a_reader_of_a_part_catches_up_although_its_first_event_comes_while_it_asks_what_there_is(
    bus: Bus, unique_run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an agent does that starts in the moment in which the first run does."""
    told: list[int] = []

    async def comes_between(*asked: Any, **how: Any) -> Any:
        if not told:
            told.append((await bus.publish(failed(unique_run))).sequence)
            # And one more that this reader does not ask for.
            await bus.publish(failed(f"{unique_run}-other"))
        return await stream_state(*asked, **how)

    monkeypatch.setattr(event_reader, "stream_state", comes_between)
    async with asyncio.timeout(20), bus.follow(events_of(unique_run), live=False) as items:
        found = [item async for item in items]
    assert [one.sequence for one in found] == [told[0], told[0]]
    assert isinstance(found[-1], CaughtUp)


async def test_a_reader_that_took_anothers_event_for_its_own_catches_up_all_the_same(
    bus: Bus, unique_run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_reader, "IDLE_S", 0.1)
    own = await bus.publish(failed(unique_run))
    other = await bus.publish(failed(f"{unique_run}-other"))
    reader = event_reader.EventReader(bus.connection, (events_of(unique_run),), after=0, live=False)
    reader._target = other.sequence
    async with asyncio.timeout(20):
        found = [item async for item in reader]
    await reader.close()
    assert [one.sequence for one in found] == [own.sequence, own.sequence]
