"""Clients that take tasks and do nothing, refuse them, or fail under ever new names: the round goes on without them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from agents.core.exchange import refusals, runs
from agents.core.exchange.messages import (
    Assignment,
    ErrorMessage,
    Ping,
    Pong,
    Ready,
    TaskFailed,
    TaskRevoked,
    UploadAccepted,
    UploadBegin,
    UploadRejected,
)
from agents.words.events import RoundClosed, RoundFailed, UpdateRejected, UpdateSubmitted
from bus.client import Bus
from tests.broker.gateway.conftest import Gateway, Talk, decided, serving, talking, update
from tests.conftest import wait_for


async def keeps_pinging(talk: Talk, heard: list[object]) -> None:
    while True:
        await talk.say(Ping())
        while not isinstance(message := await talk.hear(), Pong):
            heard.append(message)
        await asyncio.sleep(0.05)


async def test_a_client_that_takes_all_tasks_and_only_pings_does_not_fail_a_round_at_quorum_1(
    bus: Bus, tmp_path: Path
) -> None:
    async with serving(bus, tmp_path) as gateway, talking(gateway, "pings") as idle, talking(gateway, "works") as works:
        await gateway.assign("u0", "u1", deadline_s=2.0)
        held = {(await idle.task()).lease for _ in range(2)}
        heard: list[object] = []
        pinging = asyncio.create_task(keeps_pinging(idle, heard))
        try:
            for _ in range(2):
                assert isinstance(await works.upload((await works.task()).lease, update()), UploadAccepted)
            await wait_for(lambda: len(heard) == 2)
        finally:
            pinging.cancel()
            await asyncio.gather(pinging, return_exceptions=True)
        assert {one.lease for one in heard if isinstance(one, TaskRevoked)} == held
        assert [one.client for one in await gateway.events(UpdateSubmitted)] == ["works", "works"]
        closed = await decided(gateway)
        assert isinstance(closed, RoundClosed)
        assert (closed.reason, closed.accepted) == ("all", 2)


async def test_of_two_that_do_one_task_the_slow_one_counts_if_it_is_first(bus: Bus, tmp_path: Path) -> None:
    async with serving(bus, tmp_path) as gateway, talking(gateway, "slow") as slow, talking(gateway, "other") as other:
        await gateway.assign("u0", deadline_s=2.0)
        first = await slow.task()
        second = await other.task()
        assert first.task == second.task
        assert isinstance(await slow.upload(first.lease, update()), UploadAccepted)
        assert (await other.hear_a(TaskRevoked)).lease == second.lease
        assert [one.client for one in await gateway.events(UpdateSubmitted)] == ["slow"]


async def test_two_that_hold_a_task_together_and_do_nothing_make_room_for_a_third(bus: Bus, tmp_path: Path) -> None:
    async with (
        serving(bus, tmp_path) as gateway,
        talking(gateway, "pings") as one,
        talking(gateway, "pings-too") as two,
        talking(gateway, "works") as works,
    ):
        await gateway.assign("u0", deadline_s=2.0)
        first = await one.task()
        assert (await two.task()).task == first.task
        assert isinstance(await works.upload((await works.task()).lease, update()), UploadAccepted)
        assert (await one.hear_a(TaskRevoked)).reason == "it took too long; others do it"


async def test_after_a_restart_the_tasks_of_clients_that_do_not_come_back_go_to_others_within_seconds(
    bus: Bus, tmp_path: Path
) -> None:
    async with serving(bus, tmp_path, lease_s=75.0) as gateway:
        await gateway.assign("u0", "u1")
        async with talking(gateway, "killed") as killed:
            held = {(await killed.task()).task.user for _ in range(2)}
    async with serving(bus, tmp_path, lease_s=75.0) as gateway, talking(gateway, "other") as other:
        await other.say(Ready())
        await other.say(Ready())
        assert {(await other.hear_a(Assignment)).task.user for _ in range(2)} == held


async def test_a_task_that_everybody_refuses_is_put_aside_and_ends_the_round_with_its_reason(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refusals, "FIRST_S", 0.05)
    async with serving(bus, tmp_path) as gateway, talking(gateway, "one") as one, talking(gateway, "two") as two:
        await gateway.assign("u0")
        refused = 0

        async def refuses(talk: Talk) -> None:
            nonlocal refused
            while True:
                await talk.say(TaskFailed(lease=(await talk.task()).lease, reason="unknown encoding int4"))
                refused += 1

        both = [asyncio.create_task(refuses(talk)) for talk in (one, two)]
        try:

            async def put_aside() -> bool:
                return bool(await gateway.events(UpdateRejected))

            await wait_for(put_aside)
        finally:
            for task in both:
                task.cancel()
            await asyncio.gather(*both, return_exceptions=True)
        assert refused == refusals.ENOUGH
        (said,) = await gateway.events(UpdateRejected)
        assert (said.code, said.user) == ("refused", "u0")
        failed = await decided(gateway)
        assert isinstance(failed, RoundFailed)
        assert "unknown encoding int4" in failed.reason


async def test_a_client_that_refuses_everything_under_many_names_takes_no_task_from_one_that_works(
    gateway: Gateway,
) -> None:
    await gateway.assign("u0", "u1")
    async with talking(gateway, "works") as works:
        held = await works.task()
        for number in range(2 * refusals.ENOUGH):
            async with talking(gateway, f"refuses-{number}") as bad:
                await bad.say(TaskFailed(lease=(await bad.task()).lease, reason="no"))
        assert isinstance(await works.upload(held.lease, update()), UploadAccepted)
        assert isinstance(await works.upload((await works.task()).lease, update()), UploadAccepted)
    assert await gateway.events(UpdateRejected) == []


async def test_rejections_are_bounded_by_token_and_address_and_the_stream_keeps_a_few_of_each_task(
    bus: Bus, tmp_path: Path
) -> None:
    async with serving(bus, tmp_path, join_token="secret", max_address_rejections=12) as gateway:
        await gateway.assign("u0")
        rejected = 0
        for number in range(10):
            async with talking(gateway, f"name{number}", token="secret", welcome=False) as bad:
                if isinstance(await bad.hear(), ErrorMessage):
                    break
                for _ in range(4):
                    lease = (await bad.task()).lease
                    await bad.say(UploadBegin(lease=lease, upload=1, size=1, sha256="0" * 64))
                    assert isinstance(await bad.hear(), UploadRejected)
                    rejected += 1
        assert rejected == 12
        assert len(await gateway.events(UpdateRejected)) == runs.MOST_REJECTIONS
