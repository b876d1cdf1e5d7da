"""Who gets in: tokens that an operator makes and ends, their roles and limits, and TLS."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
import sys
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

import httpx
import pytest
from websockets.asyncio.client import connect

from agents.client.address import Address, AuthorityUnusableError
from agents.client.greeting import GatewayRefusedError
from agents.client.objects import ObjectCache
from agents.client.runner import Client
from agents.core.exchange.access import BURST_S
from agents.core.exchange.messages import ErrorMessage, Hello
from agents.gateway.access import ASKS_PER_S
from agents.gateway.service import TlsFilesError, running_gateway
from agents.gateway.settings import GatewaySettings
from agents.runtime.tasks import background
from bus.broker.server import EmbeddedServer
from bus.broker.tokens import TokenStore, TokenUnknownError
from bus.client import Bus
from bus.words.subjects import token_subject
from bus.words.tokens import Role, TokenLimits, TokenRecord, new_token
from tests.broker.gateway.conftest import DEADLINE_S, Gateway, Talk, serving, talking, update
from tests.broker.gateway.test_client import ScriptedTrainer, submitted
from tests.conftest import wait_for

JOIN = "the-join-token"


@contextlib.asynccontextmanager
async def reading(gateway: Gateway, token: str = "") -> AsyncIterator[httpx.AsyncClient]:
    address = Address(gateway.url, token)
    async with httpx.AsyncClient(base_url=gateway.url, headers=address.headers, timeout=DEADLINE_S) as client:

        async def ready() -> bool:
            return (await client.get("/readyz")).status_code == 200

        await wait_for(ready)
        yield client


async def granted(bus: Bus, role: Role, limits: TokenLimits | None = None, expires: datetime | None = None) -> str:
    token, record = new_token(role, limits=limits, expires=expires)
    await bus.tokens.put(record)
    return token


def id_of(token: str) -> str:
    return token.split("_")[1]


async def refused(gateway: Gateway, token: str, name: str = "other") -> str:
    """The code with which a hello is refused."""
    async with connect(gateway.socket_url, compression=None) as socket:
        talk = Talk(socket)
        await talk.say(Hello(protocol=1, token=token, client=name, engine="test"))
        error: ErrorMessage = await talk.hear_a(ErrorMessage)
        assert await talk.closed_with() == 1008
        return error.code


@pytest.mark.parametrize(
    ("role", "statuses"),
    [
        (None, (401, 401, 401, 401)),
        ("watch", (200, 200, 403, 403)),
        ("train", (200, 200, 200, 403)),
        ("admin", (200, 200, 200, 200)),
    ],
)
async def test_each_role_reads_what_is_its_own(
    bus: Bus, tmp_path: Path, role: Role | None, statuses: tuple[int, ...]
) -> None:
    token = await granted(bus, role) if role else "fb_000000000000_wrong"
    async with serving(bus, tmp_path, join_token=JOIN) as gateway, reading(gateway, token) as http:
        paths = ("/runs", "/metrics", f"/objects/{gateway.base.sha256}", "/clients")
        answers = [await http.get(path) for path in paths]
        assert tuple(answer.status_code for answer in answers) == statuses
        assert all("Bearer" in answer.headers["www-authenticate"] for answer in answers if answer.status_code == 401)
        events = await http.get("/runs/shop/events?since=minus")
        assert events.status_code == (400 if role else 401)
        assert (await http.get("/healthz")).status_code == 200


async def test_an_admin_sees_who_is_connected_under_which_token(bus: Bus, tmp_path: Path) -> None:
    admin, train = await granted(bus, "admin"), await granted(bus, "train")
    async with serving(bus, tmp_path) as gateway, reading(gateway, admin) as http:
        await gateway.assign("u0")
        async with talking(gateway, token=train) as talk:
            await talk.task()
            (listed,) = (await http.get("/clients")).json()
    assert (listed["client"], listed["engine"], listed["token"], listed["leases"]) == ("one", "test", id_of(train), 1)


async def test_a_token_for_watching_takes_no_tasks(bus: Bus, tmp_path: Path) -> None:
    token = await granted(bus, "watch")
    async with serving(bus, tmp_path) as gateway:
        assert await refused(gateway, token) == "role"
        with pytest.raises(GatewayRefusedError, match="watch"):
            await asyncio.wait_for(Client(Address(gateway.url, token), "native", ScriptedTrainer()).run(), 20)


async def test_a_token_that_is_made_while_the_gateway_runs_lets_in_and_closes_an_open_gateway(
    bus: Bus, tmp_path: Path
) -> None:
    async with serving(bus, tmp_path) as gateway, talking(gateway) as early:
        token = await granted(bus, "train")
        assert (await early.hear_a(ErrorMessage)).code == "token"
        assert await early.closed_with() == 1008
        assert await refused(gateway, "") == "token"
        async with talking(gateway, token=token):
            pass


async def test_a_revoked_token_disconnects_its_clients_and_their_tasks_go_to_others(bus: Bus, tmp_path: Path) -> None:
    token = await granted(bus, "train")
    async with (
        serving(bus, tmp_path, join_token=JOIN, lease_s=600.0) as gateway,
        talking(gateway, token=token) as talk,
        talking(gateway, "two", token=JOIN) as other,
    ):
        await gateway.assign("u0")
        held = await talk.task()
        record = await bus.tokens.revoke(id_of(token))
        assert record.revoked is not None
        assert await bus.tokens.revoke(id_of(token)) == record
        assert (await talk.hear_a(ErrorMessage)).message == "the token is revoked"
        assert await talk.closed_with() == 1008
        assert (await other.task()).task == held.task
        assert await refused(gateway, token) == "token"


async def test_a_token_that_expires_disconnects_its_clients(bus: Bus, tmp_path: Path) -> None:
    token = await granted(bus, "train", expires=datetime.now(UTC) + timedelta(seconds=3))
    async with serving(bus, tmp_path) as gateway, talking(gateway, token=token) as talk:
        assert (await talk.hear_a(ErrorMessage)).message == "the token has expired"
        assert await refused(gateway, token) == "token"


async def test_the_feed_of_a_revoked_token_ends(bus: Bus, tmp_path: Path) -> None:
    token = await granted(bus, "watch")
    async with (
        serving(bus, tmp_path, join_token=JOIN) as gateway,
        reading(gateway, token) as http,
        http.stream("GET", "/runs/shop/events") as answer,
    ):
        lines = answer.aiter_lines()
        async with asyncio.timeout(DEADLINE_S):
            while not (await anext(lines)).startswith("data:"):
                pass
            await bus.tokens.revoke(id_of(token))
            async for _ in lines:
                pass


async def test_a_token_lets_as_many_in_at_once_as_it_says(bus: Bus, tmp_path: Path) -> None:
    token = await granted(bus, "train", TokenLimits(clients=2))
    async with serving(bus, tmp_path) as gateway, talking(gateway, "one", token=token):
        async with talking(gateway, "two", token=token) as second:
            assert await refused(gateway, token, "three") == "token_full"
            async with talking(gateway, "two", token=token):
                assert await second.closed_with() == 4001
                assert await refused(gateway, token, "three") == "token_full"

        async def free() -> bool:
            with contextlib.suppress(AssertionError):
                async with talking(gateway, "three", token=token):
                    return True
            return False

        await wait_for(free)


async def test_nobody_with_another_token_takes_over_a_clients_name_or_its_tasks(bus: Bus, tmp_path: Path) -> None:
    mine, theirs = await granted(bus, "train"), await granted(bus, "train")
    async with serving(bus, tmp_path) as gateway:
        await gateway.assign("u0")
        async with talking(gateway, token=mine) as talk:
            lease = (await talk.task()).lease
            assert await refused(gateway, theirs, "one") == "name_taken"
        assert await refused(gateway, theirs, "one") == "name_taken"
        async with talking(gateway, token=mine, resume=(lease,)) as again:
            assert (await again.upload(lease, update())).type == "upload.accepted"
        async with talking(gateway, token=theirs):
            pass


async def test_leases_keep_their_token_when_the_gateway_starts_again(bus: Bus, tmp_path: Path) -> None:
    mine, theirs = await granted(bus, "train"), await granted(bus, "train")
    async with serving(bus, tmp_path) as gateway, talking(gateway, token=mine) as talk:
        await gateway.assign("u0")
        await talk.task()
    async with serving(bus, tmp_path) as gateway:
        assert await refused(gateway, theirs, "one") == "name_taken"


async def test_who_guesses_is_turned_away_even_with_a_token_that_could_be_guessed(bus: Bus, tmp_path: Path) -> None:
    async with serving(bus, tmp_path, join_token=JOIN, max_failures=3) as gateway, reading(gateway, JOIN) as http:
        for _ in range(4):
            assert await refused(gateway, "") == "token"
        for _ in range(2):
            assert await refused(gateway, "wrong") == "token"
        assert (await http.get("/runs")).status_code == 200
        assert (await http.get("/runs", headers={"Authorization": "Bearer wrong"})).status_code == 401
        answer = await http.get("/runs")
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "60")
        for token in (JOIN, "wrong"):
            assert await refused(gateway, token) == "too_many_failures"


async def test_a_right_token_gets_in_whoever_guesses_beside_it_and_guessers_all_hear_the_same(
    bus: Bus, tmp_path: Path
) -> None:
    join, made, ended = secrets.token_urlsafe(16), await granted(bus, "train"), await granted(bus, "train")
    await bus.tokens.revoke(id_of(ended))
    async with serving(bus, tmp_path, join_token=join, max_failures=2) as gateway, reading(gateway, join) as http:
        for _ in range(2):
            assert await refused(gateway, "wrong") == "token"
        said = set[str]()
        # Wrong, of an id that there is, ended, unknown: nothing tells them apart.
        for token in ("wrong", f"fb_{id_of(made)}_{'x' * 43}", ended, new_token("train")[0]):
            assert await refused(gateway, token) == "too_many_failures"
            answer = await http.get("/runs", headers={"Authorization": f"Bearer {token}"})
            assert answer.status_code == 429
            said.add(re.sub(r"\d+", "", answer.text))
        assert len(said) == 1
        for token in (join, made):
            assert (await http.get("/runs", headers={"Authorization": f"Bearer {token}"})).status_code == 200
            async with talking(gateway, token=token, name=f"x{token[:8]}"):
                pass


async def test_a_token_works_as_soon_as_it_is_made_and_guessers_cannot_have_the_broker_asked_for_ever(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As far as this test goes, the gateway never looks by itself.
    monkeypatch.setattr("bus.broker.tokens.LOOK_EVERY_S", 600.0)
    monkeypatch.setattr("bus.broker.tokens.TokenStore.changes.__defaults__", (600.0,))
    asked = 0
    find = TokenStore.find

    async def counted(self: TokenStore, name: str) -> TokenRecord | None:
        nonlocal asked
        asked += 1
        return await find(self, name)

    monkeypatch.setattr(TokenStore, "find", counted)
    async with (
        serving(bus, tmp_path, join_token=JOIN, max_failures=100_000) as gateway,
        reading(gateway, JOIN) as http,
    ):
        for role, status in (("watch", 403), ("train", 200)):
            token = await granted(bus, cast(Role, role))
            answer = await http.get(f"/objects/{gateway.base.sha256}", headers={"Authorization": f"Bearer {token}"})
            assert answer.status_code == status
        token = await granted(bus, "train")
        async with talking(gateway, token=token):
            pass
        assert asked == 3
        began = time.monotonic()
        for _ in range(100):
            guess = new_token("admin")[0]
            assert (await http.get("/runs", headers={"Authorization": f"Bearer {guess}"})).status_code == 401
        assert asked <= 4 + ASKS_PER_S * (BURST_S + time.monotonic() - began)
        assert (await http.get("/runs", headers={"Authorization": f"Bearer {token}"})).status_code == 200


async def test_what_a_token_lets_its_holder_see_is_kept_for_nobody_else(bus: Bus, tmp_path: Path) -> None:
    async with serving(bus, tmp_path, join_token=JOIN) as gateway, reading(gateway, JOIN) as http:
        path = f"/objects/{gateway.base.sha256}"
        whole = await http.get(path)
        for answer in (
            whole,
            await http.head(path),
            await http.get(path, headers={"Range": "bytes=0-3"}),
            await http.get(path, headers={"If-None-Match": whole.headers["etag"]}),
            await http.get("/runs"),
            await http.get("/runs", headers={"Authorization": ""}),
            await http.get("/objects/" + "0" * 64),
        ):
            assert "Authorization" in answer.headers["vary"], answer
            assert "public" not in answer.headers["cache-control"]
            assert "private" in answer.headers["cache-control"]


async def test_feeds_are_bounded_by_token(bus: Bus, tmp_path: Path) -> None:
    one, other = await granted(bus, "watch"), await granted(bus, "watch")
    path = "/runs/shop/events"
    async with (
        serving(bus, tmp_path, join_token=JOIN, max_token_watchers=2) as gateway,
        reading(gateway, one) as http,
        contextlib.AsyncExitStack() as stack,
    ):
        feeds = [await stack.enter_async_context(http.stream("GET", path)) for _ in range(2)]
        assert [feed.status_code for feed in feeds] == [200, 200]
        refused = await http.get(path)
        assert (refused.status_code, "[too_many_feeds]" in refused.text) == (429, True)
        async with http.stream("GET", path, headers={"Authorization": f"Bearer {other}"}) as answer:
            assert answer.status_code == 200
        await feeds[0].aclose()

        async def again() -> bool:
            async with http.stream("GET", path) as answer:
                return answer.status_code == 200

        await wait_for(again)


async def test_a_gateway_for_other_machines_lets_nobody_in_without_a_token(bus: Bus, tmp_path: Path) -> None:
    async with serving(bus, tmp_path, host="0.0.0.0") as gateway, reading(gateway) as http:
        assert gateway.url.startswith("http://127.0.0.1:")
        assert (await http.get("/runs")).status_code == 401
        assert await refused(gateway, "") == "token"


async def test_an_operator_makes_lists_and_ends_tokens_and_nothing_keeps_the_secret(
    nats: EmbeddedServer, bus: Bus, tmp_path: Path
) -> None:
    async def fedbus(*arguments: str) -> tuple[int | None, str]:
        login = {"NATS_URL": nats.url, "NATS_TOKEN": nats.token}
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "agents.cli",
            "token",
            *arguments,
            env=os.environ | login,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(60):
            said, complained = await process.communicate()
        return process.returncode, (said if process.returncode == 0 else complained).decode()

    _, token = await fedbus("create", "--role", "train", "--note", "lab 3", "--clients", "4", "--expires", "7d")
    assert re.fullmatch(r"fb_[0-9a-f]{12}_[A-Za-z0-9_-]{43}\n", token)
    token = token.strip()
    (record,) = await bus.tokens.all()
    assert (record.id, record.role, record.limits.clients) == (id_of(token), "train", 4)
    listed = " ".join((await fedbus("list"))[1].split())
    assert all(text in listed for text in (record.id, "train", "valid", "4 clients", "lab 3"))
    stored = await bus.connection.js.get_last_msg("TOKENS", token_subject(record.id))
    assert stored.data is not None
    assert token.split("_", 2)[2] not in listed + stored.data.decode()
    assert (await fedbus("revoke", record.id))[0] == 0
    assert record.id not in (await fedbus("list"))[1]
    assert "revoked" in (await fedbus("list", "--all"))[1]
    for arguments, code, text in (
        (("revoke", "0" * 12), 1, "token_unknown"),
        (("create", "--role", "king"), 2, "watch, train, admin"),
        (("create", "--role", "train", "--expires", "0s"), 2, "7d"),
    ):
        returned, said = await fedbus(*arguments)
        assert (returned, text in said) == (code, True), said


async def test_a_record_that_cannot_be_read_lets_nobody_in(bus: Bus, tmp_path: Path) -> None:
    token, record = new_token("train")
    await bus.tokens.put(record)
    for name, body in ((record.id, b"{}"), ("0" * 12, record.model_dump_json().encode())):
        await bus.connection.js.publish(token_subject(name), body)
    assert await bus.tokens.all() == []
    with pytest.raises(TokenUnknownError):
        await bus.tokens.revoke(record.id)
    async with serving(bus, tmp_path, join_token=JOIN) as gateway:
        assert await refused(gateway, token) == "token"


async def test_over_tls_a_client_trains_and_trusts_only_its_authority(
    bus: Bus, tmp_path: Path, authority: Path
) -> None:
    trainer = ScriptedTrainer()
    trainer.may_finish.set()
    files = {"tls_cert": authority / "cert.pem", "tls_key": authority / "key.pem"}
    async with serving(bus, tmp_path, join_token=JOIN, **files) as gateway:
        assert gateway.url.startswith("https://127.0.0.1:")
        await gateway.assign("u0")
        address = Address(gateway.url, JOIN, authority / "ca.pem")
        objects = ObjectCache(address, tmp_path / "cache")
        try:
            async with background(Client(address, "native", trainer).run()):
                (found,) = await submitted(gateway, 1)
            assert found.client == "native"
            assert len(await objects.get(gateway.base)) == gateway.base.size
        finally:
            await objects.close()
        async with httpx.AsyncClient(base_url=gateway.url, verify=address.tls() or True) as trusting:
            assert "max-age" in (await trusting.get("/healthz")).headers["strict-transport-security"]
        async with httpx.AsyncClient(base_url=gateway.url) as stranger:
            with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
                await stranger.get("/healthz")
        async with httpx.AsyncClient(base_url=gateway.url.replace("https", "http")) as plain:
            with pytest.raises(httpx.HTTPError):
                await plain.get("/healthz")
    with pytest.raises(AuthorityUnusableError, match=r"nowhere\.pem"):
        Address("https://127.0.0.1:1", "", tmp_path / "nowhere.pem").tls()


@pytest.mark.parametrize(
    ("cert", "key"), [("cert.pem", "ca.key"), ("nowhere.pem", "key.pem"), ("san", "key.pem"), ("", "key.pem")]
)
async def test_files_that_are_no_certificate_with_its_key_end_the_start_with_the_reason(
    bus: Bus, tmp_path: Path, authority: Path, cert: str, key: str
) -> None:
    files = {"tls_cert": authority / cert if cert else None, "tls_key": authority / key}
    settings = GatewaySettings.model_validate({"port": 0, "spool_dir": tmp_path / "spool", **files})
    with pytest.raises(TlsFilesError) as caught:
        await running_gateway(bus, settings).__aenter__()
    assert "FEDBUS_GATEWAY_TLS" in caught.value.hint


def test_an_address_in_a_log_shows_no_token() -> None:
    assert JOIN not in repr(Address("http://127.0.0.1:1", JOIN))
