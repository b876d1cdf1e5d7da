import asyncio
import contextlib
import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from nats.js import JetStreamContext

from bus.broker.server import EmbeddedServer, embedded_server
from bus.client import Bus
from bus.errors import FedbusError
from bus.words.envelope import Stored
from bus.words.subjects import events_of
from bus.work.consumer import Delivery, PullConsumer
from bus.work.worker import Handler, work
from tests.broker.bus.conftest import failed
from tests.conftest import wait_for


@contextlib.asynccontextmanager
async def working(consumer: PullConsumer, handler: Handler, concurrency: int = 2) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(work(consumer, handler, concurrency=concurrency))
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_fetch_gives_what_there_is_and_nothing_after_the_timeout(bus: Bus, unique_run: str) -> None:
    async with bus.pull(unique_run, events_of(unique_run)) as consumer:
        assert await consumer.fetch(5, timeout_s=0.1) == []
        await bus.publish_many(failed(unique_run, number) for number in range(3))
        found: list[Delivery] = []
        while len(found) < 3:
            found += await consumer.fetch(5, timeout_s=5)
        assert [one.attempt for one in found] == [1, 1, 1]
        for one in found:
            await one.ack()
        assert await consumer.pending() == 0


async def test_two_workers_share_the_events_and_each_is_handled_once(
    bus: Bus, nats: EmbeddedServer, unique_run: str
) -> None:
    handled: list[int] = []

    async def handler(stored: Stored) -> None:
        handled.append(stored.sequence)

    async with Bus.connect(nats.settings, name="other", wait_s=10) as other:
        filter_ = events_of(unique_run)
        async with (
            bus.pull(unique_run, filter_) as one,
            other.pull(unique_run, filter_) as two,
            working(one, handler),
            working(two, handler),
        ):
            published = await bus.publish_many(failed(unique_run, number) for number in range(60))
            await wait_for(lambda: len(handled) >= 60)
            await wait_for(lambda: _is_idle(one))
    assert sorted(handled) == [event.sequence for event in published]


async def _is_idle(consumer: PullConsumer) -> bool:
    return await consumer.pending() == 0


async def test_a_failed_event_comes_again_after_its_backoff(bus: Bus, unique_run: str) -> None:
    await bus.publish(failed(unique_run))
    times: list[float] = []
    done = asyncio.Event()

    async def handler(stored: Stored) -> None:
        times.append(asyncio.get_running_loop().time())
        if len(times) < 3:
            raise FedbusError("not yet")
        done.set()

    async with bus.pull(unique_run, events_of(unique_run), backoff=[0.1, 0.3]) as consumer, working(consumer, handler):
        await asyncio.wait_for(done.wait(), 10)
    assert times[1] - times[0] >= 0.1
    assert times[2] - times[1] >= 0.3


async def test_the_last_failure_buries_the_event_with_its_reason(
    bus: Bus, raw: JetStreamContext, unique_run: str
) -> None:
    published = await bus.publish(failed(unique_run))
    attempts = 0

    async def handler(stored: Stored) -> None:
        nonlocal attempts
        attempts += 1
        raise OSError("disk on fire\nINFO forged line")

    filter_ = events_of(unique_run)
    async with bus.pull(unique_run, filter_, max_deliver=3, backoff=[0.01]) as consumer, working(consumer, handler):
        await wait_for(lambda: consumer.buried == 1)
        await wait_for(lambda: _is_idle(consumer))
    assert attempts == 3
    buried = await raw.get_last_msg("DLQ", f"dlq.given_up.{unique_run}.{published.sequence}")
    assert buried.headers is not None
    assert buried.headers["Fedbus-Reason"] == "OSError: disk on fire\\nINFO forged line"
    assert buried.data == published.event.to_json()


async def test_an_error_that_trying_again_does_not_heal_buries_the_event_at_once(bus: Bus, unique_run: str) -> None:
    await bus.publish_many(failed(unique_run, number) for number in range(3))
    attempts: list[int] = []

    async def handler(stored: Stored) -> None:
        attempts.append(stored.sequence)
        raise ZeroDivisionError("always")

    async with bus.pull(unique_run, events_of(unique_run), max_ack_pending=1) as consumer:
        working_ = asyncio.create_task(work(consumer, handler, concurrency=1, permanent=(ZeroDivisionError,)))
        await wait_for(lambda: consumer.buried == 3)
        await wait_for(lambda: _is_idle(consumer))
        working_.cancel()
        await asyncio.gather(working_, return_exceptions=True)
    assert len(attempts) == 3


async def test_a_worker_that_is_stopped_gives_its_event_back_at_once(bus: Bus, unique_run: str) -> None:
    await bus.publish(failed(unique_run))
    busy = asyncio.Event()

    async def handler(stored: Stored) -> None:
        busy.set()
        await asyncio.Event().wait()

    async with bus.pull(unique_run, events_of(unique_run), ack_wait_s=60) as consumer:
        async with working(consumer, handler):
            await asyncio.wait_for(busy.wait(), 5)
        (again,) = await consumer.fetch(1, timeout_s=5)
        assert again.attempt == 2
        await again.ack()


async def test_an_event_whose_workers_end_with_it_is_given_up_and_that_is_said_once(bus: Bus, unique_run: str) -> None:
    await bus.publish(failed(unique_run))
    said: list[str] = []

    async def handler(stored: Stored) -> None:
        raise KeyError("the process ends here")

    async def on_given_up(stored: Stored, reason: str) -> None:
        said.append(reason)

    async with bus.pull(unique_run, events_of(unique_run), ack_wait_s=0.2, max_deliver=-1) as consumer:
        for _ in range(2):
            with pytest.raises(KeyError):
                await asyncio.wait_for(work(consumer, handler, concurrency=1, attempts=2, on_given_up=on_given_up), 10)
        assert said == []
        last = asyncio.create_task(work(consumer, handler, concurrency=1, attempts=2, on_given_up=on_given_up))
        await wait_for(lambda: consumer.buried == 1)
        last.cancel()
        await asyncio.gather(last, return_exceptions=True)
    assert said == ["its worker ended 2 times while it had it"]


async def test_any_other_exception_ends_the_worker_and_the_event_comes_again(bus: Bus, unique_run: str) -> None:
    await bus.publish(failed(unique_run))

    async def handler(stored: Stored) -> None:
        raise KeyError("defect")

    async with bus.pull(unique_run, events_of(unique_run), ack_wait_s=0.2) as consumer:
        # As itself: a group would pass by every ``except`` that names what it expects.
        with pytest.raises(KeyError, match="defect"):
            await asyncio.wait_for(work(consumer, handler, concurrency=1), 10)
        again = await consumer.fetch(1, timeout_s=5)
        assert [one.attempt for one in again] == [2]
        await again[0].ack()


async def test_a_slow_handler_keeps_its_event_by_saying_that_it_is_in_progress(bus: Bus, unique_run: str) -> None:
    await bus.publish(failed(unique_run))
    attempts = 0
    release = asyncio.Event()

    async def handler(stored: Stored) -> None:
        nonlocal attempts
        attempts += 1
        await release.wait()

    async with bus.pull(unique_run, events_of(unique_run), ack_wait_s=0.3) as consumer, working(consumer, handler):
        with pytest.raises(TimeoutError):
            await wait_for(lambda: attempts > 1, within_s=1.2)
        release.set()
        await wait_for(lambda: _is_idle(consumer))
    assert attempts == 1


async def test_an_event_that_is_never_settled_leaves_an_advisory_in_the_dlq(
    bus: Bus, raw: JetStreamContext, unique_run: str
) -> None:
    published = await bus.publish(failed(unique_run))
    async with bus.pull(unique_run, events_of(unique_run), ack_wait_s=0.1, max_deliver=2) as consumer:
        subject = f"$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.EVENTS.{unique_run}"

        async def advisory() -> bool:
            await consumer.fetch(1, timeout_s=0.2)
            return bool((await raw.stream_info("DLQ", subjects_filter=subject)).state.subjects)

        await wait_for(advisory)
    body = json.loads((await raw.get_last_msg("DLQ", subject)).data or b"")
    assert (body["stream_seq"], body["deliveries"]) == (published.sequence, 2)


async def test_without_a_limit_an_event_comes_as_often_as_it_fails(bus: Bus, unique_run: str) -> None:
    await bus.publish(failed(unique_run))
    async with bus.pull(unique_run, events_of(unique_run), max_deliver=-1) as consumer:
        for attempt in range(1, 9):
            (delivery,) = await consumer.fetch(1, timeout_s=5)
            assert delivery.attempt == attempt
            await delivery.nak(0)
        (delivery,) = await consumer.fetch(1, timeout_s=5)
        await delivery.terminate("enough")
        assert consumer.buried == 1
        assert await consumer.fetch(1, timeout_s=0.1) == []


async def test_an_existing_consumer_gets_the_new_config(bus: Bus, raw: JetStreamContext, unique_run: str) -> None:
    for limit in (3, 7):
        async with bus.pull(unique_run, events_of(unique_run), max_deliver=limit):
            assert (await raw.consumer_info("EVENTS", unique_run)).config.max_deliver == limit


async def test_what_a_leaving_worker_did_not_take_goes_back_at_once(bus: Bus, unique_run: str) -> None:
    await bus.publish_many(failed(unique_run, number) for number in range(3))
    async with bus.pull(unique_run, events_of(unique_run), ack_wait_s=60) as leaving:
        await leaving.reader.ask(3)
        await wait_for(lambda: leaving.reader.buffered == 3)
    async with bus.pull(unique_run, events_of(unique_run), ack_wait_s=60) as consumer:
        again: list[Delivery] = []
        while len(again) < 3:
            again += await asyncio.wait_for(consumer.fetch(3, timeout_s=5), 10)
        assert [one.attempt for one in again] == [2, 2, 2]


async def test_a_worker_goes_on_after_the_broker_was_killed(tmp_path: Path, unique_run: str) -> None:
    handled: set[int] = set()

    async def handler(stored: Stored) -> None:
        handled.add(stored.sequence)

    async with contextlib.AsyncExitStack() as stack:
        async with embedded_server(tmp_path / "store") as first:
            bus = await stack.enter_async_context(Bus.connect(first.settings, name="test", wait_s=10))
            consumer = await stack.enter_async_context(bus.pull("worker", events_of(unique_run)))
            await stack.enter_async_context(working(consumer, handler))
            await bus.publish_many(failed(unique_run, number) for number in range(10))
            await wait_for(lambda: len(handled) == 10)
            first.process.send_signal(signal.SIGKILL)
            await first.wait()
        async with embedded_server(tmp_path / "store", port=first.port):
            await bus.publish_many(failed(unique_run, number) for number in range(10, 20))
            await wait_for(lambda: len(handled) == 20)
            await stack.pop_all().aclose()
