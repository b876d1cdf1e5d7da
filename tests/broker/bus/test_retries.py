"""An event that was given up is handled after all: once it was asked for, whoever dies at whichever step."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from nats.js import JetStreamContext

from agents.words.events import RoundStarted
from bus.broker.direct_get import stream_state
from bus.broker.server import EmbeddedServer, embedded_server
from bus.broker.topology import DLQ_STREAM
from bus.client import Bus
from bus.errors import FedbusError
from bus.stream.dead_letters import DeadLetter
from bus.stream.letter_list import count_open
from bus.words.envelope import Stored, new_event
from bus.words.subjects import event_subject, events_of
from bus.work.consumer import PullConsumer
from bus.work.retries import LetterMalformedError, LetterUnclaimedError, retries_of
from bus.work.worker import work
from tests.broker.bus.conftest import failed
from tests.conftest import wait_for


class Moody:
    """A handler that fails as long as it is ``broken``, and remembers what it handled."""

    def __init__(self) -> None:
        self.broken = True
        self.tries = 0
        self.handled: list[int] = []

    async def __call__(self, stored: Stored) -> None:
        self.tries += 1
        if self.broken:
            raise FedbusError("not today")
        self.handled.append(stored.sequence)


@contextlib.asynccontextmanager
async def working(bus: Bus, run: str, handler: Moody) -> AsyncIterator[PullConsumer]:
    async with bus.pull(run, events_of(run), max_deliver=2, backoff=[0.01], ack_wait_s=5) as consumer:
        task = asyncio.create_task(work(consumer, handler, concurrency=2))
        try:
            yield consumer
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def letters(bus: Bus, run: str) -> list[DeadLetter]:
    return [one for one in await bus.dead_letters() if one.consumer == run or f".{run}." in one.subject]


async def given_up(bus: Bus, run: str) -> DeadLetter:
    """The letter of the run's one event, once its worker has given up and is not about to try again."""

    async def open_letter() -> DeadLetter | None:
        return next((one for one in await letters(bus, run) if one.retry_at is None), None)

    found = await wait_for(open_letter)
    assert found is not None
    return found


async def is_settled(bus: Bus, run: str) -> bool:
    return await letters(bus, run) == []


async def test_a_letter_is_handled_after_all_and_leaves_the_list_only_then(bus: Bus, unique_run: str) -> None:
    published, moody = await bus.publish(failed(unique_run)), Moody()
    async with working(bus, unique_run, moody) as consumer:
        letter = await given_up(bus, unique_run)
        assert (letter.sequence, letter.consumer) == (published.sequence, unique_run)
        assert letter.reason == "FedbusError: not today"
        moody.broken = False
        assert (await bus.retry(letter)).asked == (unique_run,)
        await wait_for(lambda: is_settled(bus, unique_run))
        await wait_for(lambda: _idle(consumer))
    assert moody.handled == [published.sequence]


async def _idle(consumer: PullConsumer) -> bool:
    async with retries_of(consumer) as retries:
        return await consumer.pending() == 0 and await retries.pending() == 0


async def test_a_letter_that_waits_for_its_worker_says_so_and_is_asked_for_once(
    bus: Bus, raw: JetStreamContext, unique_run: str
) -> None:
    await bus.publish(failed(unique_run))
    moody = Moody()
    async with working(bus, unique_run, moody):
        letter = await given_up(bus, unique_run)
    first, second = await bus.retry(letter), await bus.retry(letter)
    assert (first.asked, second.asked, second.asked_before) == ((unique_run,), (), (unique_run,))
    (waiting,) = await letters(bus, unique_run)
    assert waiting.retry_at is not None
    moody.broken = False
    async with working(bus, unique_run, moody):
        await wait_for(lambda: is_settled(bus, unique_run))
    assert len(moody.handled) == 1


async def test_an_event_that_fails_again_is_a_letter_again_and_can_be_given_back_again(
    bus: Bus, unique_run: str
) -> None:
    await bus.publish(failed(unique_run))
    moody = Moody()
    async with working(bus, unique_run, moody):
        first = await given_up(bus, unique_run)
        await bus.retry(first)
        await wait_for(lambda: moody.tries == 4)
        second = await given_up(bus, unique_run)
        assert second.place > first.place
        moody.broken = False
        assert (await bus.retry(second)).asked == (unique_run,)
        await wait_for(lambda: is_settled(bus, unique_run))


async def test_a_message_that_is_no_event_stays(bus: Bus, raw: JetStreamContext, unique_run: str) -> None:
    bad = await raw.publish(event_subject(failed(unique_run)), b"\xff")
    moody = Moody()
    async with working(bus, unique_run, moody):
        letter = await given_up(bus, unique_run)
        with pytest.raises(LetterMalformedError, match=f"{bad.seq} stays"):
            await bus.retry(letter)
    assert await letters(bus, unique_run) == [letter]
    assert moody.tries == 0


async def test_a_letter_of_a_consumer_without_workers_stays(bus: Bus, unique_run: str) -> None:
    await bus.publish(failed(unique_run))
    async with bus.pull(unique_run, events_of(unique_run)) as consumer:
        (delivery,) = await consumer.fetch(1, timeout_s=5)
        await delivery.terminate("no")
    letter = await given_up(bus, unique_run)
    with pytest.raises(LetterUnclaimedError, match="takes nothing back"):
        await bus.retry(letter)
    assert await letters(bus, unique_run) == [letter]


async def test_what_an_older_version_did_not_understand_goes_to_all_workers_that_take_it_now(
    bus: Bus, raw: JetStreamContext, unique_run: str
) -> None:
    moody = Moody()
    moody.broken = False
    async with working(bus, unique_run, moody):
        published = await bus.publish(RoundStarted(run=unique_run, round=1))
        await wait_for(lambda: moody.handled == [published.sequence])
        headers = {"Fedbus-Subject": event_subject(published.event.data), "Fedbus-Reason": "unknown type"}
        await raw.publish(f"dlq.{published.sequence}", published.event.to_json(), headers=headers)
        assert (await bus.retry(await given_up(bus, unique_run))).asked == (unique_run,)
        await wait_for(lambda: is_settled(bus, unique_run))
    assert moody.handled == [published.sequence] * 2


async def test_the_event_of_an_advisory_is_given_back(bus: Bus, unique_run: str) -> None:
    published, moody = await bus.publish(failed(unique_run)), Moody()
    moody.broken = False
    async with bus.pull(unique_run, events_of(unique_run), ack_wait_s=0.1, max_deliver=1) as consumer:
        await consumer.fetch(1, timeout_s=5)

        async def advised() -> bool:
            await consumer.fetch(1, timeout_s=0.2)
            return not await is_settled(bus, unique_run)

        await wait_for(advised)
    async with working(bus, unique_run, moody):
        letter = await given_up(bus, unique_run)
        assert "deliveries" in letter.reason
        await wait_for(lambda: _asked(bus, letter))
        await wait_for(lambda: is_settled(bus, unique_run))
    assert moody.handled == [published.sequence]


@pytest.mark.parametrize(
    ("subject", "body"),
    [
        ("dlq.retry.{run}.soon", b""),
        ("dlq.retry.{run}.999999999999999999", b'{"letter": -1}'),
        ("dlq.retry.{run}.999999999999999998", b"[" * 100_000),
        ("dlq.what.is.this", b'{"stream_seq": Infinity, "consumer": 1}'),
    ],
)
async def test_strange_words_on_the_dlq_stop_nobody(
    bus: Bus, raw: JetStreamContext, unique_run: str, subject: str, body: bytes
) -> None:
    moody = Moody()
    moody.broken = False
    async with working(bus, unique_run, moody) as consumer:
        await raw.publish(subject.format(run=unique_run), body)
        await bus.publish(failed(unique_run))
        await wait_for(lambda: len(moody.handled) == 1)
        await wait_for(lambda: _idle(consumer))
    assert all("not in the stream any more" in one.reason for one in await letters(bus, unique_run))


async def test_the_count_from_subjects_alone_is_the_length_of_the_list(bus: Bus) -> None:
    counted = await count_open(bus.connection, (await stream_state(bus.connection, DLQ_STREAM, ">")).subjects)
    assert counted == len(await bus.dead_letters()) > 0


WORKER = """
import asyncio, sys
from pathlib import Path
import agents.words.events
from bus.client import Bus
from bus.errors import FedbusError
from bus.words.subjects import events_of
from bus.work.worker import work

async def handler(stored):
    with open(sys.argv[2], "a") as file:
        file.write(f"{stored.sequence}\\n")
    if not Path(sys.argv[3]).exists():
        raise FedbusError("not today")

async def main():
    run = sys.argv[1]
    async with Bus.connect(name="worker", wait_s=10) as bus:
        async with bus.pull(run, events_of(run), max_deliver=2, backoff=[0.01], ack_wait_s=0.5) as consumer:
            await work(consumer, handler, concurrency=1)

asyncio.run(main())
"""


@contextlib.asynccontextmanager
async def worker(
    nats: EmbeddedServer, run: str, tried: Path, mended: Path, **variables: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A worker that is a process of its own, so that it can be killed in the middle of a step."""
    environment = {**os.environ, "NATS_URL": nats.url, "NATS_TOKEN": nats.token, **variables}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", WORKER, run, str(tried), str(mended), env=environment, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@pytest.mark.parametrize("point", ["worker.handled_again", "worker.noted"])
async def test_a_worker_that_is_killed_between_two_steps_of_a_retry_loses_nothing(
    nats: EmbeddedServer, bus: Bus, raw: JetStreamContext, tmp_path: Path, unique_run: str, point: str
) -> None:
    published = await bus.publish(failed(unique_run))
    tried, mended = tmp_path / "tried", tmp_path / "mended"
    async with worker(nats, unique_run, tried, mended):
        letter = await given_up(bus, unique_run)
    mended.touch()
    await bus.retry(letter)
    async with worker(nats, unique_run, tried, mended, FEDBUS_CRASH_AT=point) as killed:
        assert await asyncio.wait_for(killed.wait(), 20) == -9
    # Before the note the letter is still there; after it, only the acknowledgement is missing.
    assert await is_settled(bus, unique_run) == (point == "worker.noted")
    async with worker(nats, unique_run, tried, mended):
        await wait_for(lambda: is_settled(bus, unique_run))
        await wait_for(lambda: _none_wanted(raw, unique_run))
    # Twice until it was given up, once in the worker that was killed, and again where nothing says that it was done.
    assert len(tried.read_text().split()) == (3 if point == "worker.noted" else 4)
    assert set(tried.read_text().split()) == {str(published.sequence)}


async def _none_wanted(raw: JetStreamContext, run: str) -> bool:
    info = await raw.consumer_info(DLQ_STREAM, run)
    return (info.num_pending, info.num_ack_pending) == (0, 0)


async def test_a_worker_that_is_killed_while_it_gives_up_leaves_its_letter(
    nats: EmbeddedServer, bus: Bus, tmp_path: Path, unique_run: str
) -> None:
    await bus.publish(failed(unique_run))
    tried, mended = tmp_path / "tried", tmp_path / "mended"
    async with worker(nats, unique_run, tried, mended, FEDBUS_CRASH_AT="worker.buried") as killed:
        assert await asyncio.wait_for(killed.wait(), 20) == -9
    letter = await given_up(bus, unique_run)
    mended.touch()
    async with worker(nats, unique_run, tried, mended):
        await wait_for(lambda: _asked(bus, letter))
        await wait_for(lambda: is_settled(bus, unique_run))


async def _asked(bus: Bus, letter: DeadLetter) -> bool:
    try:
        return bool(await bus.retry(letter))
    except LetterUnclaimedError:
        return False


async def test_a_worker_that_dies_of_an_event_each_time_gives_it_up_in_the_end(
    nats: EmbeddedServer, bus: Bus, raw: JetStreamContext, unique_run: str
) -> None:
    await bus.publish(failed(unique_run))
    moody = Moody()
    async with working(bus, unique_run, moody):
        letter = await given_up(bus, unique_run)
    async with (
        bus.pull(unique_run, events_of(unique_run), max_deliver=2, ack_wait_s=0.2) as consumer,
        retries_of(consumer) as retries,
    ):
        await bus.retry(letter)
        for attempt in (1, 2):
            (delivery,) = await retries.fetch(1, timeout_s=5)
            assert delivery.attempt == attempt
        assert await retries.fetch(1, timeout_s=1) == []
        assert retries.buried == 1
    assert "ended 2 times" in (await given_up(bus, unique_run)).reason


async def test_the_command_gives_back_one_letter_or_all(tmp_path: Path) -> None:
    moody = Moody()
    async with (
        embedded_server(tmp_path / "nats") as nats,
        Bus.connect(nats.settings, name="test", wait_s=10) as bus,
        working(bus, "shop", moody),
    ):
        await bus.publish_many(failed("shop", number) for number in (1, 2, 3))
        other = new_event(failed("other"), source="test").to_json()
        await bus.connection.js.publish("ev.shop.round.failed.4", other)
        await wait_for(lambda: _count(bus, 4))
        moody.broken = False
        first = next(one.sequence for one in await bus.dead_letters() if one.consumer == "shop")
        assert await fedbus(nats, "dlq", "retry", str(first)) == (0, f"{first} goes to shop again\n")
        await wait_for(lambda: _count(bus, 3))
        code, said = await fedbus(nats, "dlq", "retry", "--all")
        assert code == 0
        assert "2 dead letters given back, 1 stay" in said
        assert "[letter_malformed]" in said
        await wait_for(lambda: _count(bus, 1))
        (stays,) = await bus.dead_letters()
        code, said = await fedbus(nats, "dlq", "retry", str(stays.sequence))
        assert (code, "[letter_malformed]" in said) == (1, True)
        code, said = await fedbus(nats, "dlq", "retry", "999")
        assert (code, "[letter_unknown]" in said) == (1, True)
        assert (await fedbus(nats, "dlq", "retry"))[0] == 2
        assert json.loads(stays.body) == json.loads(other)
    assert sorted(moody.handled) == [1, 2, 3]


async def _count(bus: Bus, count: int) -> bool:
    return len(await bus.dead_letters()) == count


async def fedbus(nats: EmbeddedServer, *arguments: str) -> tuple[int, str]:
    """Exit code and output of the command."""
    environment = {**os.environ, "NATS_URL": nats.url, "NATS_TOKEN": nats.token, "COLUMNS": "200"}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "agents.cli", *arguments),
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode is not None
    return process.returncode, output.decode()
