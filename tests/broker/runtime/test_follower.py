"""When an agent that follows the stream may decide, and what becomes of what it says."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest
import pytest_asyncio

from agents.runtime.follower import Follower
from agents.runtime.past import Past
from agents.runtime.tasks import background
from agents.words.events import Payload, RoundFailed, RoundStarted
from bus.broker.server import EmbeddedServer, embedded_server
from bus.client import Bus
from bus.words.envelope import Stored
from bus.words.subjects import events_of
from tests.conftest import wait_for


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def nats(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EmbeddedServer]:
    """A broker of this module's own: a follower reads the whole stream."""
    async with embedded_server(tmp_path_factory.mktemp("follower")) as server:
        yield server


class Counter:
    """Says ``round.failed`` for each round that it has read ``round.started`` and no failure of, once up to date."""

    def __init__(self, bus: Bus, run: str, reason: str = "mine") -> None:
        self.follower = Follower(bus, "test")
        self.repeated = lambda: bus.statistics().repeated
        self.run = run
        self.reason = reason
        self.open: list[int] = []
        self.reasons: dict[int, str] = {}
        self.read_at_decisions: list[int] = []
        self.read = 0
        self.wake_at: datetime | None = None
        self.woken: datetime | None = None

    def begin(self, past: Past) -> None:
        """Needs nothing of it."""

    async def take(self, stored: Stored) -> None:
        data = stored.event.data
        if data.run == self.run:
            self.read += 1
            if isinstance(data, RoundStarted):
                self.open.append(data.round)
            elif isinstance(data, RoundFailed):
                self.open.remove(data.round)
                self.reasons[data.round] = data.reason

    async def decide(self) -> None:
        self.read_at_decisions.append(self.read)
        if self.wake_at is not None and datetime.now(UTC) >= self.wake_at:
            self.wake_at, self.woken = None, datetime.now(UTC)
        failed = [failure(self.run, number, self.reason) for number in self.open]
        if len(failed) > 1:
            await self.follower.say_all(failed, cause=None)
        elif failed:
            await self.follower.say(failed[0], cause=None)

    def due(self) -> datetime | None:
        return self.wake_at


def started(run: str, number: int) -> RoundStarted:
    return RoundStarted(run=run, round=number)


def failure(run: str, number: int, reason: str) -> RoundFailed:
    return RoundFailed(run=run, round=number, reason=reason)


@contextlib.asynccontextmanager
async def following(nats: EmbeddedServer, run: str, reason: str = "mine") -> AsyncIterator[Counter]:
    async with Bus.connect(nats.settings, name="test", wait_s=10) as bus:
        counter = Counter(bus, run, reason)
        async with background(counter.follower.serve(counter)):
            yield counter


async def said(bus: Bus, run: str) -> list[Payload]:
    async with bus.follow(events_of(run), live=False) as items:
        return [item.event.data async for item in items if isinstance(item, Stored)]


async def test_nothing_is_decided_before_everything_that_was_there_was_read(
    nats: EmbeddedServer, bus: Bus, unique_run: str
) -> None:
    await bus.publish_many(started(unique_run, number) for number in range(1, 301))
    async with following(nats, unique_run) as counter:
        await wait_for(lambda: counter.read == 600)
    assert counter.read_at_decisions[0] == 300


async def test_nothing_is_decided_while_own_words_are_on_their_way_back(
    nats: EmbeddedServer, bus: Bus, unique_run: str
) -> None:
    async with following(nats, unique_run) as counter:
        await wait_for(lambda: counter.follower.is_live)
        await bus.publish_many(started(unique_run, number) for number in range(1, 51))
        await wait_for(lambda: len(counter.reasons) == 50)
    assert len([one for one in await said(bus, unique_run) if isinstance(one, RoundFailed)]) == 50
    # Had it decided before its words came back, it would have said them again.
    assert counter.repeated() == 0


async def test_it_wakes_up_when_a_decision_is_due_although_nothing_comes(nats: EmbeddedServer, unique_run: str) -> None:
    async with following(nats, unique_run) as counter:
        await wait_for(lambda: counter.follower.is_live)
        counter.wake_at = datetime.now(UTC) + timedelta(seconds=0.2)
        async with Bus.connect(nats.settings, name="test", wait_s=10) as bus:
            await bus.publish(started(unique_run, 1))
        await wait_for(lambda: counter.woken)


async def test_what_another_instance_said_first_counts_and_ends_the_matter(
    nats: EmbeddedServer, bus: Bus, unique_run: str
) -> None:
    async with following(nats, unique_run, "ours") as ours, following(nats, unique_run, "theirs") as theirs:
        await wait_for(lambda: ours.follower.is_live and theirs.follower.is_live)
        for number in range(1, 21):
            await bus.publish(started(unique_run, number))
        await wait_for(lambda: len(ours.reasons) == len(theirs.reasons) == 20)
        assert ours.reasons == theirs.reasons


async def test_of_many_words_those_that_are_still_unsaid_are_said_where_one_is_contradicted(
    nats: EmbeddedServer, bus: Bus, unique_run: str
) -> None:
    for number in range(1, 5):
        await bus.publish(started(unique_run, number))
    async with Bus.connect(nats.settings, name="test", wait_s=10) as other:
        follower = Follower(other, "test")
        await bus.publish(failure(unique_run, 2, "theirs"))
        await follower.say_all([failure(unique_run, number, "mine") for number in range(1, 5)], cause=None)
    reasons = {one.round: one.reason for one in await said(bus, unique_run) if isinstance(one, RoundFailed)}
    assert reasons == {1: "mine", 2: "theirs", 3: "mine", 4: "mine"}


async def test_a_decision_whose_time_is_past_is_not_asked_for_again_and_again(
    nats: EmbeddedServer, unique_run: str
) -> None:
    class Late(Counter):
        def due(self) -> datetime | None:
            return datetime.now(UTC) - timedelta(hours=1)

    async with Bus.connect(nats.settings, name="test", wait_s=10) as bus:
        late = Late(bus, unique_run)
        began = asyncio.get_running_loop().time()
        async with background(late.follower.serve(late)):
            await wait_for(lambda: len(late.read_at_decisions) >= 3)
        assert asyncio.get_running_loop().time() - began >= 0.25
