"""Tasks go out under leases, updates come in, and whatever is wrong with one is said while the round goes on."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
from websockets.asyncio.client import connect

from agents.core.exchange import presence
from agents.core.exchange.messages import (
    Assignment,
    ErrorMessage,
    Hello,
    Leave,
    Ping,
    Pong,
    Ready,
    TaskFailed,
    TaskRevoked,
    UploadAccepted,
    UploadBegin,
    UploadCommit,
    UploadOffset,
    UploadRejected,
    encode_chunk,
)
from agents.words.events import RoundClosed, UpdateMetrics, UpdateRejected, UpdateSubmitted
from bus.client import Bus
from tests.broker.gateway.conftest import METRICS, PARAMETERS, Gateway, Talk, serving, talking, update
from tests.builders import config


async def test_a_task_goes_out_and_its_update_comes_in(gateway: Gateway) -> None:
    (task,) = await gateway.assign("u0")
    async with talking(gateway) as talk:
        assignment = await talk.task()
        assert assignment.task == task
        assert isinstance(await talk.upload(assignment.lease, update()), UploadAccepted)
    (submitted,) = await gateway.events(UpdateSubmitted)
    assert (submitted.user, submitted.client, submitted.base_model) == ("u0", "one", gateway.base.sha256)
    assert submitted.metrics == METRICS
    assert await gateway.bus.objects.get(submitted.update) == update()


async def test_two_clients_share_the_pool_and_nobody_gets_a_task_twice(gateway: Gateway) -> None:
    await gateway.assign("u0", "u1")
    async with talking(gateway, "one") as one, talking(gateway, "two") as two:
        first, second = await one.task(), await two.task()
        assert {first.task.user, second.task.user} == {"u0", "u1"}


async def test_a_task_that_is_assigned_later_reaches_a_client_that_waits(gateway: Gateway) -> None:
    async with talking(gateway) as talk:
        await talk.say(Ready())
        await gateway.assign("u0")
        assert isinstance(await talk.hear(), Assignment)


@pytest.mark.parametrize(
    ("data", "metrics", "code"),
    [
        (
            update()[:-4] + b"\x00\x00\xc0\x7f",
            METRICS,
            "nonfinite",
        ),
        *((update(value), METRICS, "magnitude") for value in (1e30, 1.07e8, 2.0**31, 1024.001)),
        (update(), METRICS.model_copy(update={"examples": 3}), "metrics"),
        (update(), METRICS.model_copy(update={"predictions": (1, 0)}), "metrics"),
        (update(), METRICS.model_copy(update={"predictions": (1, 0, 3)}), "metrics"),
        (update(), METRICS.model_copy(update={"mismatched_images": 0}), "metrics"),
        (update(), METRICS.model_copy(update={"trained_images": 8}), "metrics"),
    ],
)
async def test_a_bad_update_is_rejected_and_somebody_else_gets_the_task(
    gateway: Gateway, data: bytes, metrics: UpdateMetrics, code: str
) -> None:
    await gateway.assign("u0")
    async with talking(gateway, "bad") as bad, talking(gateway, "good") as good:
        answer = await bad.upload((await bad.task()).lease, data, metrics)
        assert isinstance(answer, UploadRejected)
        assert answer.code == code
        again = await good.task()
        assert again.task.user == "u0"
        assert isinstance(await good.upload(again.lease, update()), UploadAccepted)
    (rejected,) = await gateway.events(UpdateRejected)
    assert (rejected.code, rejected.client) == (code, "bad")
    assert [one.client for one in await gateway.events(UpdateSubmitted)] == ["good"]


@pytest.mark.parametrize("size", [4 * PARAMETERS - 4, 4 * PARAMETERS + 4, 0])
async def test_an_update_of_another_size_is_rejected_before_a_byte_is_sent(gateway: Gateway, size: int) -> None:
    await gateway.assign("u0")
    async with talking(gateway) as talk:
        lease = (await talk.task()).lease
        await talk.say(UploadBegin(lease=lease, upload=1, size=size, sha256="0" * 64))
        assert (await talk.hear_a(UploadRejected)).code == "size"
    assert [one.code for one in await gateway.events(UpdateRejected)] == ["size"]


async def test_bytes_with_another_digest_than_announced_are_rejected(gateway: Gateway) -> None:
    await gateway.assign("u0")
    async with talking(gateway) as talk:
        answer = await talk.upload((await talk.task()).lease, update(), sha256="0" * 64)
        assert isinstance(answer, UploadRejected)
        assert answer.code == "digest"


async def test_an_update_past_the_runs_norm_is_rejected(bus: Bus, tmp_path: Path) -> None:
    limit = float(np.sqrt(PARAMETERS)) * 0.25
    limited = config().model_copy(update={"max_update_norm": limit * 1.0001})
    async with serving(bus, tmp_path, limited) as gateway, talking(gateway) as talk:
        await gateway.assign("u0", "u1")
        within = await talk.upload((await talk.task()).lease, update(0.25))
        past = await talk.upload((await talk.task()).lease, update(0.2501), upload=1)
    assert isinstance(within, UploadAccepted)
    assert isinstance(past, UploadRejected)
    assert past.code == "norm"


async def test_a_round_that_closes_takes_its_tasks_back_and_a_late_update_is_stale(gateway: Gateway) -> None:
    await gateway.assign("u0")
    async with talking(gateway) as talk:
        lease = (await talk.task()).lease
        await gateway.bus.publish(
            RoundClosed(run="shop", round=1, reason="deadline", accepted=0, missing=1, rejected=0, through=1)
        )
        assert (await talk.hear_a(TaskRevoked)).lease == lease
        await talk.say(UploadBegin(lease=lease, upload=1, size=4 * PARAMETERS, sha256="0" * 64))
        assert (await talk.hear_a(UploadRejected)).code == "stale"
    assert [one.code for one in await gateway.events(UpdateRejected)] == ["stale"]


async def test_a_client_that_cannot_do_a_task_gives_it_back(gateway: Gateway) -> None:
    await gateway.assign("u0")
    async with talking(gateway, "one") as one, talking(gateway, "two") as two:
        await one.say(TaskFailed(lease=(await one.task()).lease, reason="no\x1b[31m memory"))
        assert (await two.task()).task.user == "u0"


async def test_the_tasks_of_a_client_that_says_goodbye_go_to_others_at_once(bus: Bus, tmp_path: Path) -> None:
    async with (
        serving(bus, tmp_path, lease_s=600.0) as gateway,
        talking(gateway) as talk,
        talking(gateway, "two") as other,
    ):
        await gateway.assign("u0", "u1")
        held = {(await talk.task()).task.user for _ in range(2)}
        await talk.say(Leave())
        assert await talk.closed_with() == 1000
        assert {(await other.task()).task.user for _ in range(2)} == held


async def test_the_task_of_a_client_that_is_gone_returns_after_its_lease(bus: Bus, tmp_path: Path) -> None:
    async with serving(bus, tmp_path, lease_s=0.5) as gateway:
        await gateway.assign("u0")
        async with talking(gateway, "lost") as lost:
            first = await lost.task()
        async with talking(gateway, "other") as other:
            second = await other.task()
        assert second.task == first.task
        assert second.lease != first.lease


@pytest.mark.parametrize("cut", [0, 1, 399_999, 400_000, 1_000_001, 4 * PARAMETERS])
async def test_an_upload_that_was_cut_goes_on_at_its_byte(gateway: Gateway, cut: int) -> None:
    await gateway.assign("u0")
    data = update(0.5)
    async with talking(gateway) as talk:
        lease = (await talk.task()).lease
        await talk.send(data, await talk.begin(lease, data), until=cut)
    async with talking(gateway, resume=(lease,)) as talk:
        assert await talk.begin(lease, data) == cut
        await talk.send(data, cut)
        await talk.say(UploadCommit(lease=lease, upload=1, metrics=METRICS))
        assert isinstance(await talk.hear(), UploadAccepted)


async def test_an_upload_goes_on_after_the_gateway_was_started_again(bus: Bus, tmp_path: Path) -> None:
    data = update(0.5)
    async with serving(bus, tmp_path) as gateway:
        await gateway.assign("u0")
        async with talking(gateway) as talk:
            lease = (await talk.task()).lease
            await talk.send(data, await talk.begin(lease, data), until=500_001)
    async with serving(bus, tmp_path) as gateway, talking(gateway, resume=(lease,)) as talk:
        assert await talk.begin(lease, data) == 500_001
        await talk.send(data, 500_001)
        await talk.say(UploadCommit(lease=lease, upload=1, metrics=METRICS))
        assert isinstance(await talk.hear(), UploadAccepted)


async def test_a_client_hears_again_that_its_update_was_accepted(gateway: Gateway) -> None:
    """The connection may be cut between the commit and its answer."""
    await gateway.assign("u0")
    async with talking(gateway) as talk:
        lease = (await talk.task()).lease
        assert isinstance(await talk.upload(lease, update()), UploadAccepted)
    async with talking(gateway, resume=(lease,)) as talk:
        await talk.say(UploadBegin(lease=lease, upload=2, size=4 * PARAMETERS, sha256="0" * 64))
        assert isinstance(await talk.hear(), UploadAccepted)
    assert len(await gateway.events(UpdateSubmitted)) == 1


async def test_nobody_uploads_for_a_task_that_another_client_holds(gateway: Gateway) -> None:
    await gateway.assign("u0")
    async with talking(gateway, "one") as one, talking(gateway, "two") as two:
        lease = (await one.task()).lease
        await two.say(UploadBegin(lease=lease, upload=1, size=4 * PARAMETERS, sha256="0" * 64))
        assert (await two.hear_a(ErrorMessage)).code == "unknown_lease"


async def test_a_second_connection_of_the_same_name_takes_the_place_of_the_first(gateway: Gateway) -> None:
    await gateway.assign("u0")
    async with talking(gateway, "one") as first:
        lease = (await first.task()).lease
        async with talking(gateway, "one", resume=(lease,)) as second:
            assert await first.closed_with() == 4001
            assert isinstance(await second.upload(lease, update()), UploadAccepted)


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("not json", "bad_message"),
        ("{}", "bad_message"),
        ('{"type": "upload.begin"}', "bad_message"),
        ('{"type": "ready", "more": 1}', "bad_message"),
        ('{"type": "' + "x" * 70_000 + '"}', "too_large"),
        (b"", "bad_chunk"),
        (b"short", "bad_chunk"),
        (encode_chunk(7, 0, b"x"), "unknown_upload"),
    ],
)
async def test_a_malformed_message_gets_an_error_and_the_conversation_goes_on(
    gateway: Gateway, message: str | bytes, code: str
) -> None:
    async with talking(gateway) as talk:
        await talk.say(message)
        assert (await talk.hear_a(ErrorMessage)).code == code
        await talk.say(Ping())
        assert isinstance(await talk.hear(), Pong)


@pytest.mark.parametrize(("offset", "code"), [(1, "bad_offset"), (0, "too_large")])
async def test_a_chunk_that_does_not_belong_is_refused(gateway: Gateway, offset: int, code: str) -> None:
    await gateway.assign("u0")
    async with talking(gateway) as talk:
        data = update()
        lease = (await talk.task()).lease
        await talk.begin(lease, data)
        if code == "too_large":
            offset = await talk.send(data)
        await talk.say(encode_chunk(1, offset, b"x"))
        assert (await talk.hear_a(ErrorMessage)).code == code


async def test_repeated_nonsense_closes_the_connection_and_no_other(bus: Bus, tmp_path: Path) -> None:
    async with serving(bus, tmp_path, max_errors=3) as gateway, talking(gateway, "other") as other:
        async with talking(gateway, "bad") as bad:
            for _ in range(3):
                await bad.say("nonsense")
                assert isinstance(await bad.hear(), ErrorMessage)
            assert await bad.closed_with() == 1008
        await other.say(Ping())
        assert isinstance(await other.hear(), Pong)


async def test_a_client_whose_updates_are_rejected_again_and_again_is_shut_out(bus: Bus, tmp_path: Path) -> None:
    async with serving(bus, tmp_path, max_rejections=2) as gateway:
        await gateway.assign("u0", "u1")
        async with talking(gateway, "bad") as bad:
            for _ in range(2):
                lease = (await bad.task()).lease
                await bad.say(UploadBegin(lease=lease, upload=1, size=1, sha256="0" * 64))
                assert isinstance(await bad.hear(), UploadRejected)
            assert await bad.closed_with() == 1008
        async with talking(gateway, "bad", welcome=False) as bad:
            assert (await bad.hear_a(ErrorMessage)).code == "shut_out"


async def test_a_client_holds_or_waits_for_at_most_eight_tasks(gateway: Gateway) -> None:
    async with talking(gateway) as talk:
        for _ in range(9):
            await talk.say(Ready())
        assert (await talk.hear_a(ErrorMessage)).code == "too_many"


@pytest.mark.parametrize(
    ("hello", "code"),
    [
        (Hello(protocol=1, token="wrong", client="c", engine="e"), "token"),
        (Hello(protocol=1, client="c", engine="e"), "token"),
        (Hello(protocol=2, token="secret", client="c", engine="e"), "version"),
        (Ping(), "hello"),
    ],
)
async def test_a_wrong_hello_is_refused(bus: Bus, tmp_path: Path, hello: Hello | Ping, code: str) -> None:
    async with serving(bus, tmp_path, join_token="secret") as gateway, connect(gateway.socket_url) as socket:
        talk = Talk(socket)
        await talk.say(hello)
        assert (await talk.hear_a(ErrorMessage)).code == code
        assert await talk.closed_with() == 1008


async def test_hello_comes_once(bus: Bus, tmp_path: Path) -> None:
    async with serving(bus, tmp_path, join_token="secret") as gateway, talking(gateway, token="secret") as talk:
        await talk.say(Hello(protocol=1, token="secret", client="one", engine="e"))
        assert (await talk.hear_a(ErrorMessage)).code == "twice"


async def test_silence_instead_of_hello_closes_the_connection(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presence, "HELLO_S", 0.2)
    async with connect(gateway.socket_url) as socket:
        assert await Talk(socket).closed_with() == 1008


async def test_many_updates_at_once_all_get_in(gateway: Gateway) -> None:
    users = [f"u{index}" for index in range(8)]
    await gateway.assign(*users)

    async def client(name: str) -> None:
        async with talking(gateway, name) as talk:
            assert isinstance(await talk.upload((await talk.task()).lease, update(0.1)), UploadAccepted)

    async with asyncio.TaskGroup() as group:
        for user in users:
            group.create_task(client(f"client-{user}"))
    assert {one.user for one in await gateway.events(UpdateSubmitted)} == set(users)


async def test_an_offset_is_acknowledged_for_each_chunk(gateway: Gateway) -> None:
    await gateway.assign("u0")
    async with talking(gateway) as talk:
        data = update()
        lease = (await talk.task()).lease
        await talk.begin(lease, data)
        await talk.say(encode_chunk(1, 0, data[:10]))
        await talk.say(encode_chunk(1, 10, data[10:30]))
        offsets = [(await talk.hear_a(UploadOffset)).offset for _ in range(2)]
        assert offsets == [10, 30]
