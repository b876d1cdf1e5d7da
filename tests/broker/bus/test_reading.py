"""What holds for each way to read the event stream, following it and pulling a durable consumer."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager

import pytest
from nats.js import JetStreamContext

from agents.words.events import RoundFailed
from bus.client import Bus, CaughtUp
from bus.words.envelope import Stored, new_event
from bus.words.subjects import event_subject, events_of, events_of_type
from bus.work.consumer import Delivery
from tests.broker.bus.conftest import failed

Next = Callable[[], Awaitable[Stored]]
Reading = Callable[[Bus, str | Sequence[str]], AbstractAsyncContextManager[Next]]


@contextlib.asynccontextmanager
async def following(bus: Bus, filters: str | Sequence[str]) -> AsyncIterator[Next]:
    async with bus.follow(filters) as items:

        async def following_one() -> Stored:
            while isinstance(item := await anext(items), CaughtUp):
                pass
            return item

        yield following_one


@contextlib.asynccontextmanager
async def pulling(bus: Bus, filters: str | Sequence[str]) -> AsyncIterator[Next]:
    name = (filters if isinstance(filters, str) else filters[0]).split(".")[1]
    async with bus.pull(f"{name}-pulled", filters) as consumer:
        fetched: deque[Delivery] = deque()

        async def next_delivery() -> Stored:
            while not fetched:
                fetched.extend(await consumer.fetch(100, timeout_s=10))
            delivery = fetched.popleft()
            await delivery.ack()
            return delivery.stored

        yield next_delivery


reading_ways = pytest.mark.parametrize("reading", [following, pulling])


async def read(next_one: Next, count: int) -> list[int]:
    """The rounds that the next events are about."""
    found = []
    async with asyncio.timeout(20):
        for _ in range(count):
            data = (await next_one()).event.data
            assert isinstance(data, RoundFailed)
            found.append(data.round)
    return found


@reading_ways
async def test_what_there_is_and_what_comes_is_read_in_order(bus: Bus, unique_run: str, reading: Reading) -> None:
    await bus.publish_many(failed(unique_run, number) for number in range(300))
    async with reading(bus, events_of(unique_run)) as next_one:
        assert await read(next_one, 300) == list(range(300))
        last = await bus.publish(failed(unique_run, 300))
        async with asyncio.timeout(10):
            assert (await next_one()).sequence == last.sequence


@reading_ways
async def test_several_filters_are_read_in_stream_order(bus: Bus, unique_run: str, reading: Reading) -> None:
    other = f"{unique_run}-2"
    for number in range(4):
        await bus.publish(failed(unique_run if number % 2 else other, number))
    filters = [events_of_type("round.failed", unique_run), events_of_type("round.failed", other)]
    async with reading(bus, filters) as next_one:
        assert await read(next_one, 4) == [0, 1, 2, 3]


@reading_ways
async def test_a_cancelled_read_loses_nothing(bus: Bus, unique_run: str, reading: Reading) -> None:
    await bus.publish(failed(unique_run, 0))
    async with reading(bus, events_of(unique_run)) as next_one:
        assert await read(next_one, 1) == [0]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.05):
                await next_one()
        await bus.publish(failed(unique_run, 1))
        assert await read(next_one, 1) == [1]


@reading_ways
async def test_malformed_messages_are_buried_once_with_their_reason_and_skipped(
    bus: Bus, raw: JetStreamContext, unique_run: str, reading: Reading
) -> None:
    subject = event_subject(failed(unique_run, 7))
    bad = await raw.publish(subject, b"{broken\x00", headers={"Status": "409", "Description": "Consumer Deleted"})
    misplaced = await raw.publish(subject, new_event(failed(unique_run, 8), source="test").to_json())
    await bus.publish(failed(unique_run, 9))
    # Whoever reads after the first finds the letters there.
    for way in (reading, following):
        async with way(bus, events_of(unique_run)) as next_one:
            assert await read(next_one, 1) == [9]
    buried = await raw.get_last_msg("DLQ", f"dlq.{bad.seq}")
    assert buried.data == b"{broken\x00"
    assert buried.headers is not None
    assert buried.headers["Fedbus-Subject"] == subject
    assert "CloudEvents" in buried.headers["Fedbus-Reason"]
    reason = (await raw.get_last_msg("DLQ", f"dlq.{misplaced.seq}")).headers
    assert reason is not None
    assert "failed.8" in reason["Fedbus-Reason"]
    info = await raw.stream_info("DLQ", subjects_filter=f"dlq.{bad.seq}")
    assert info.state.subjects == {f"dlq.{bad.seq}": 1}


@reading_ways
async def test_a_reader_survives_the_loss_of_its_consumer(
    bus: Bus, raw: JetStreamContext, unique_run: str, reading: Reading
) -> None:
    async with asyncio.timeout(20), reading(bus, events_of(unique_run)) as next_one:
        waiting = asyncio.ensure_future(read(next_one, 1))
        deleted = 0
        while not deleted:
            for consumer in await raw.consumers_info("EVENTS"):
                if events_of(unique_run) in (consumer.config.filter_subject, *(consumer.config.filter_subjects or ())):
                    deleted += await raw.delete_consumer("EVENTS", consumer.name)
        await bus.publish(failed(unique_run, 4))
        assert await waiting == [4]
