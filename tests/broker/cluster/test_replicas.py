"""A replica that is behind may delay what somebody asks, and never decide it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from agents.words.events import RoundStarted
from bus.broker.cluster import EmbeddedCluster
from bus.broker.topology import OBJECT_STREAM, STREAMS, TOKEN_STREAM
from bus.client import Bus
from bus.words.envelope import Stored
from bus.words.subjects import EVENT_STREAM, event_subject, events_of
from bus.words.tokens import new_token
from bus.work.consumer import Delivery, PullConsumer
from bus.work.retries import retries_of
from tests.chaos.torn import Torn, leader_of
from tests.conftest import wait_for

PARTS = 12
UNDECIDED_S = 2.0


@contextlib.asynccontextmanager
async def apart(torn: Torn, stream: str) -> AsyncIterator[tuple[Bus, Bus, str]]:
    """A bus beside the leader of a stream, and one on a follower that nothing reaches any more."""
    async with Bus.connect(torn.cluster.settings_for(), name="test", wait_s=20) as bus:
        leader = await leader_of(bus, stream)
    follower = next(ends[1] for ends in torn.lines if ends[0] == leader)
    async with torn.connected(leader) as near, torn.connected(follower) as far:
        torn.cut_off(follower)
        try:
            yield near, far, follower
        finally:
            torn.heal()


@contextlib.asynccontextmanager
async def on_each(cluster: EmbeddedCluster) -> AsyncIterator[list[Bus]]:
    """A bus on each broker, which talks to that one alone."""
    async with contextlib.AsyncExitStack() as stack:
        settings = [cluster.settings_for().model_copy(update={"url": one.url}) for one in cluster.servers]
        yield [await stack.enter_async_context(Bus.connect(one, name="test", wait_s=20)) for one in settings]


async def step_down(bus: Bus, what: str) -> None:
    """Another broker leads."""
    await bus.connection.nc.request(f"$JS.API.{what}", timeout=10)


async def test_every_stream_lies_on_each_broker(clustered: Bus) -> None:
    for stream in STREAMS:
        info = await clustered.connection.js.stream_info(stream.name or "")
        assert info.config.num_replicas == 3


@pytest.mark.timeout(120)
async def test_what_was_just_said_is_known_through_every_broker(cluster: EmbeddedCluster, unique_run: str) -> None:
    async with on_each(cluster) as buses:
        for part in range(PARTS):
            speaker = buses[part % 3]
            data = part.to_bytes(4, "big") * 200_000
            ref = await speaker.objects.put(data)
            assert await asyncio.gather(*(one.objects.get(ref) for one in buses)) == [data] * 3
            said = RoundStarted(run=unique_run, round=part + 1)
            await speaker.publish(said)
            for found in await asyncio.gather(*(one.find(event_subject(said)) for one in buses)):
                assert found is not None
            assert await asyncio.gather(*(all_said(one, unique_run) for one in buses)) == [part + 1] * 3


@pytest.mark.timeout(120)
async def test_of_writers_on_every_broker_one_is_first_and_all_know_it(
    cluster: EmbeddedCluster, unique_run: str
) -> None:
    async with on_each(cluster) as buses:
        for part in range(PARTS):
            said = RoundStarted(run=unique_run, round=part + 1)
            published = await asyncio.gather(*(one.publish(said) for one in buses for _ in range(2)))
            assert len({one.sequence for one in published}) == 1
            assert sum(one.created for one in published) == 1


@pytest.mark.timeout(120)
async def test_a_letter_that_is_buried_through_one_broker_is_listed_and_given_back_through_others(
    cluster: EmbeddedCluster, unique_run: str
) -> None:
    async with on_each(cluster) as (one, another, third):
        durable = f"letters-{unique_run}"
        async with (
            one.pull(durable, events_of(unique_run)) as first,
            another.pull(durable, events_of(unique_run)) as second,
            retries_of(second) as again,
        ):
            for number in range(1, 6):
                said = await third.publish(RoundStarted(run=unique_run, round=number))
                (delivery,) = await taken(first)
                await delivery.terminate("it was too much")
                for bus in (one, another, third):
                    (letter,) = [one for one in await bus.dead_letters() if one.sequence == said.sequence]
                    assert (letter.reason, letter.retry_at) == ("it was too much", None)
                assert (await third.retry(letter)).asked == (durable,)
                assert (await one.retry(letter)).asked_before == (durable,)
                (delivery,) = await taken(again)
                await delivery.ack()
                for bus in (one, another, third):
                    assert said.sequence not in [one.sequence for one in await bus.dead_letters()]


@pytest.mark.chaos
@pytest.mark.timeout(120)
async def test_leaders_that_change_between_put_and_publish_change_nothing(
    cluster: EmbeddedCluster, unique_run: str
) -> None:
    async with on_each(cluster) as buses:
        for number in range(1, 4):
            data = number.to_bytes(4, "big") * 200_000
            ref = await buses[0].objects.put(data)
            for stream in (OBJECT_STREAM, EVENT_STREAM):
                await step_down(buses[0], f"STREAM.LEADER.STEPDOWN.{stream}")
            said = RoundStarted(run=unique_run, round=number)
            published = await asyncio.gather(*(one.publish(said) for one in buses))
            assert sum(one.created for one in published) == 1
            assert await asyncio.gather(*(one.objects.get(ref) for one in buses)) == [data] * 3
            assert await asyncio.gather(*(all_said(one, unique_run) for one in buses)) == [number] * 3


@pytest.mark.timeout(120)
async def test_a_consumer_that_moves_to_another_broker_brings_every_event(
    cluster: EmbeddedCluster, unique_run: str
) -> None:
    count = 30
    async with on_each(cluster) as (one, another, _):
        durable = f"moves-{unique_run}"
        async with another.pull(durable, events_of(unique_run), ack_wait_s=2.0) as consumer:
            seen: set[int] = set()
            for number in range(1, count + 1):
                await one.publish(RoundStarted(run=unique_run, round=number))
                if number % 10 == 0:
                    await step_down(one, f"CONSUMER.LEADER.STEPDOWN.{EVENT_STREAM}.{durable}")
                    for delivery in await taken(consumer):
                        seen.add(delivery.stored.sequence)
                        await delivery.ack()
            while len(seen) < count:
                for delivery in await taken(consumer):
                    seen.add(delivery.stored.sequence)
                    await delivery.ack()


@pytest.mark.asyncio(loop_scope="session")  # where the proxies of ``torn`` live
@pytest.mark.timeout(120)
async def test_an_object_that_a_follower_lacks_is_waited_for(torn: Torn) -> None:
    async with apart(torn, OBJECT_STREAM) as (near, far, _):
        data = b"fedbus" * 200_000
        ref = await near.objects.put(data)
        getting = asyncio.create_task(far.objects.get(ref))
        await undecided(getting)
        torn.heal()
        assert await getting == data


@pytest.mark.chaos
@pytest.mark.asyncio(loop_scope="session")  # where the proxies of ``torn`` live
@pytest.mark.timeout(120)
async def test_an_event_that_a_follower_lacks_is_waited_for(torn: Torn, unique_run: str) -> None:
    said = RoundStarted(run=unique_run, round=1)
    async with apart(torn, EVENT_STREAM) as (near, far, _):
        await near.publish(said)
        finding = asyncio.create_task(far.find(event_subject(said)))
        await undecided(finding)
        torn.heal()
        found = await finding
    assert found is not None
    assert found.event.data == said


@pytest.mark.chaos
@pytest.mark.asyncio(loop_scope="session")  # where the proxies of ``torn`` live
@pytest.mark.timeout(120)
async def test_a_token_whose_end_a_follower_has_not_heard_of_lets_nobody_in(torn: Torn) -> None:
    async with apart(torn, TOKEN_STREAM) as (near, far, follower):
        # While it was whole, both had the token.
        torn.heal()
        record = new_token("train")[1]
        await near.tokens.put(record)
        await wait_for(far.tokens.all, within_s=30)
        torn.cut_off(follower)
        await near.tokens.revoke(record.id)
        reading = asyncio.create_task(far.tokens.all())
        await undecided(reading)
        torn.heal()
        assert [one.revoked is not None for one in await reading] == [True]


async def taken(consumer: PullConsumer) -> list[Delivery]:
    """The next deliveries, at least one."""
    return await wait_for(lambda: consumer.fetch(10, timeout_s=2), within_s=30)


async def undecided(question: asyncio.Task[Any]) -> None:
    """Sees that a question has no answer for as long as the leader cannot be asked."""
    done, _ = await asyncio.wait([question], timeout=UNDECIDED_S)
    assert not done


async def all_said(bus: Bus, run: str) -> int:
    """How many events of a run a reader finds that stops where the stream ends."""
    async with bus.follow(events_of(run), live=False) as items:
        return len([one async for one in items if isinstance(one, Stored)])
