"""The native client against the real gateway: it finishes what it began, through every loss of the gateway."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agents.client.address import Address
from agents.client.greeting import GatewayRefusedError
from agents.client.objects import GatewayUnreachableError, ObjectCache
from agents.client.runner import Client
from agents.client.trainer import EngineTrainer, Finished, Progress, SyntheticTrainer
from agents.runtime.tasks import background
from agents.words.events import RunFinished, TaskAssigned, UpdateSubmitted
from bus.client import Bus
from bus.errors import ObjectMissingError
from tests.broker.gateway.conftest import METRICS, Gateway, serving, update
from tests.builders import ANY_REF
from tests.conftest import wait_for

LARGE = bytes(range(251)) * 9_000


class ScriptedTrainer:
    """Gives the same update for every task, when it is told to."""

    engine = "scripted"

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.may_finish = asyncio.Event()

    async def prepare(self, task: TaskAssigned) -> None:
        """Nothing to fetch."""

    async def run(self, task: TaskAssigned, progress: Progress) -> Finished:
        self.started.set()
        await self.may_finish.wait()
        return Finished(update(), METRICS)


@contextlib.asynccontextmanager
async def cache(gateway: Gateway, folder: Path) -> AsyncIterator[ObjectCache]:
    objects = ObjectCache(Address(gateway.url), folder / "cache")
    try:
        yield objects
    finally:
        await objects.close()


async def submitted(gateway: Gateway, count: int) -> list[UpdateSubmitted]:
    async def enough() -> list[UpdateSubmitted] | None:
        found = await gateway.events(UpdateSubmitted)
        return found if len(found) >= count else None

    return await wait_for(enough, within_s=20)


async def test_a_client_does_one_task_after_the_other(gateway: Gateway) -> None:
    users = [f"u{index}" for index in range(12)]
    await gateway.assign(*users)
    trainer = ScriptedTrainer()
    trainer.may_finish.set()
    client = Client(Address(gateway.url), "native", trainer)
    async with background(client.run()):
        found = await submitted(gateway, len(users))
    assert {one.user for one in found} == set(users)
    assert {one.engine for one in found} == {"scripted"}


async def test_a_client_brings_its_update_to_the_gateway_that_was_started_again(bus: Bus, tmp_path: Path) -> None:
    trainer = ScriptedTrainer()
    async with contextlib.AsyncExitStack() as stack:
        async with serving(bus, tmp_path) as gateway:
            port = int(gateway.url.rsplit(":", 1)[1])
            await gateway.assign("u0")
            client = Client(Address(gateway.url), "native", trainer)
            await stack.enter_async_context(background(client.run()))
            await asyncio.wait_for(trainer.started.wait(), 20)
        trainer.may_finish.set()
        async with serving(bus, tmp_path, port=port) as again:
            (found,) = await submitted(again, 1)
    assert (found.user, found.client) == ("u0", "native")


async def test_a_client_that_is_stopped_gives_its_task_to_another_at_once(bus: Bus, tmp_path: Path) -> None:
    stopped, ready = ScriptedTrainer(), ScriptedTrainer()
    ready.may_finish.set()
    async with serving(bus, tmp_path, lease_s=600.0) as gateway:
        await gateway.assign("u0")
        async with background(Client(Address(gateway.url), "one", stopped).run()):
            await asyncio.wait_for(stopped.started.wait(), 20)
        async with background(Client(Address(gateway.url), "two", ready).run()):
            (found,) = await submitted(gateway, 1)
    assert found.client == "two"


async def test_a_wrong_token_ends_the_client_with_the_reason(bus: Bus, tmp_path: Path) -> None:
    async with serving(bus, tmp_path, join_token="secret") as gateway:
        client = Client(Address(gateway.url, "wrong"), "native", ScriptedTrainer())
        with pytest.raises(GatewayRefusedError, match="token"):
            await asyncio.wait_for(client.run(), 20)


async def test_a_task_whose_spec_is_nonsense_goes_back_and_the_client_goes_on(gateway: Gateway, tmp_path: Path) -> None:
    await gateway.assign("u0")
    async with cache(gateway, tmp_path) as objects:
        client = Client(Address(gateway.url), "native", EngineTrainer(objects))
        async with background(client.run()):
            # The spec of these tasks is an image shard: the client gives each up, and asks for the next.
            await wait_for(lambda: objects.downloaded_bytes > 0, within_s=20)
            await gateway.bus.publish(RunFinished(run="shop", status="cancelled", rounds=0))
    assert await gateway.events(UpdateSubmitted) == []


async def test_a_synthetic_client_needs_the_spec_only(gateway: Gateway, tmp_path: Path) -> None:
    async with cache(gateway, tmp_path) as objects:
        with pytest.raises(Exception, match="not a TaskSpec"):
            await SyntheticTrainer(objects).prepare((await gateway.assign("u0"))[0])


async def test_an_object_is_fetched_once(gateway: Gateway, tmp_path: Path) -> None:
    ref = await gateway.bus.objects.put(LARGE)
    async with cache(gateway, tmp_path) as objects:
        assert await objects.get(ref) == LARGE
        assert await objects.get(ref) == LARGE
        assert objects.downloaded_bytes == len(LARGE)
    async with cache(gateway, tmp_path) as another:
        assert await another.get(ref) == LARGE
        assert another.downloaded_bytes == 0


@pytest.mark.usefixtures("http")
async def test_an_object_that_is_not_there_is_said(gateway: Gateway, tmp_path: Path) -> None:
    assert gateway.dataset.truth is not None
    missing = gateway.base.model_copy(update={"sha256": "0" * 64, "name": "sha256-" + "0" * 64})
    async with cache(gateway, tmp_path) as objects:
        for ref in (missing, gateway.dataset.truth):
            with pytest.raises(ObjectMissingError):
                await objects.get(ref)


async def test_a_gateway_that_is_away_is_said_after_all_attempts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agents.client.objects.ATTEMPTS", 2)
    objects = ObjectCache(Address("http://127.0.0.1:9"), tmp_path)
    try:
        with pytest.raises(GatewayUnreachableError):
            await objects.get(ANY_REF)
    finally:
        await objects.close()
