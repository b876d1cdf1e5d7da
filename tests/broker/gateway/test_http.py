"""Page, objects, feeds and figures: what the gateway serves, and to whom it says no."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from agents.gateway.service import running_gateway
from agents.words.events import Progress, RoundStarted, RunFinished, TaskAssigned
from agents.words.run_config import RunDataset, UserShard
from bus.client import Bus
from bus.errors import PortTakenError
from bus.objects.bucket import meta_subject
from tests.broker.gateway.conftest import DEADLINE_S, LABELS, Gateway, serving, talking, update
from tests.builders import config, run_started
from tests.conftest import wait_for

DATA = bytes(range(256)) * 5_000


async def test_an_object_is_served_whole_with_its_digest_as_etag(gateway: Gateway, http: httpx.AsyncClient) -> None:
    ref = await gateway.bus.objects.put(DATA)
    answer = await http.get(f"/objects/{ref.sha256}")
    assert (answer.status_code, answer.content) == (200, DATA)
    assert answer.headers["etag"] == f'"{ref.sha256}"'
    assert "immutable" in answer.headers["cache-control"]
    again = await http.get(f"/objects/{ref.sha256}", headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    head = await http.head(f"/objects/{ref.sha256}")
    assert (head.headers["content-length"], head.content) == (str(len(DATA)), b"")


@pytest.mark.parametrize(
    ("asked", "first", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=1000000-", 1_000_000, len(DATA)),
        ("bytes=524287-524289", 524_287, 524_290),
        ("bytes=-10", len(DATA) - 10, len(DATA)),
        (f"bytes=5-{len(DATA) + 100}", 5, len(DATA)),
    ],
)
async def test_a_range_is_served(gateway: Gateway, http: httpx.AsyncClient, asked: str, first: int, end: int) -> None:
    ref = await gateway.bus.objects.put(DATA)
    answer = await http.get(f"/objects/{ref.sha256}", headers={"Range": asked})
    assert answer.status_code == 206
    assert answer.content == DATA[first:end]
    assert answer.headers["content-range"] == f"bytes {first}-{end - 1}/{len(DATA)}"


@pytest.mark.parametrize(
    "lie", [{"deleted": True}, {"size": 7}, {"nuid": "nowhere"}, {"headers": {"media-type": ["\n"]}}]
)
async def test_an_object_of_which_something_untrue_is_said_is_served(
    gateway: Gateway, http: httpx.AsyncClient, lie: dict[str, object]
) -> None:
    objects = gateway.bus.objects
    ref = await objects.put(DATA)
    (meta,) = await objects.bucket.candidates(ref.name)
    await gateway.bus.connection.js.publish(meta_subject(ref.name), json.dumps(meta.model_dump() | lie).encode())
    part = await http.get(f"/objects/{ref.sha256}", headers={"Range": "bytes=-10"})
    assert (part.status_code, part.content) == (206, DATA[-10:])
    whole = await http.get(f"/objects/{ref.sha256}")
    assert (whole.status_code, whole.content) == (200, DATA)


async def test_a_range_past_the_end_cannot_be_served(gateway: Gateway, http: httpx.AsyncClient) -> None:
    ref = await gateway.bus.objects.put(DATA)
    answer = await http.get(f"/objects/{ref.sha256}", headers={"Range": f"bytes={len(DATA)}-"})
    assert answer.status_code == 416


@pytest.mark.parametrize("name", ["0" * 64, "0" * 63, "..%2f..%2fetc%2fpasswd", "%2e%2e", "sha256-" + "0" * 64])
async def test_names_that_are_no_object_are_not_found(http: httpx.AsyncClient, name: str) -> None:
    assert (await http.get(f"/objects/{name}")).status_code == 404


async def test_a_gateway_that_starts_behind_old_runs_keeps_their_secrets_and_lists_them(
    bus: Bus, tmp_path: Path
) -> None:
    """It hands out tasks of what is open at once; what only an old run names is looked into first."""
    shown = await bus.objects.put(b"an old model")
    runs = {f"old-{number:02}": await bus.objects.put(b"old secret %d" % number) for number in range(60)}
    for run, secret in runs.items():
        dataset = RunDataset(classes=("a", "b"), users=(UserShard(user="u0", shard=shown),), held_out=secret)
        ref = await bus.objects.put(dataset.model_dump_json().encode())
        await bus.publish(run_started(config()).model_copy(update={"run": run, "dataset": ref}))
        await bus.publish(RunFinished(run=run, status="completed", rounds=1, final_model=shown))
    async with serving(bus, tmp_path) as gateway, httpx.AsyncClient(base_url=gateway.url, timeout=30) as http:

        async def status(digest: str) -> int:
            answers: list[int] = []

            async def decided() -> bool:
                answers.append((await http.get(f"/objects/{digest}")).status_code)
                return answers[-1] != 503

            await wait_for(decided)
            return answers[-1]

        assert [await status(one.sha256) for one in (gateway.dataset.held_out, *runs.values())] == [404] * 61
        assert [await status(one.sha256) for one in (shown, gateway.base, gateway.dataset.users[0].shard)] == [200] * 3
        listed = (await http.get("/runs")).json()
        assert [one["run"] for one in listed] == [*runs, "shop"]
        assert {one["status"] for one in listed[:-1]} == {"completed"}
        # A task that is delivered late, of a run that is over, is nobody's any more.
        late = TaskAssigned(run="old-00", round=1, user="u0", shard=shown, labels=LABELS, spec=shown, seed=1)
        await bus.publish(late)
        (task,) = await gateway.assign("u0")
        async with talking(gateway) as talk:
            assert (await talk.task()).task == task


async def test_held_out_images_and_true_labels_are_for_no_client(gateway: Gateway, http: httpx.AsyncClient) -> None:
    assert gateway.dataset.truth is not None
    shard = gateway.dataset.users[0].shard
    for secret in (gateway.dataset.held_out, gateway.dataset.truth):
        assert (await http.get(f"/objects/{secret.sha256}")).status_code in (403, 404)
    assert (await http.get(f"/objects/{shard.sha256}")).status_code == 200


@pytest.mark.parametrize("path", ["/", "/runs", "/objects/" + "0" * 64, "/healthz"])
async def test_every_answer_has_its_safety_headers(http: httpx.AsyncClient, path: str) -> None:
    headers = (await http.get(path)).headers
    assert "script-src 'self'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cross-origin-opener-policy"] == "same-origin"
    assert headers["cross-origin-embedder-policy"] == "require-corp"


async def test_isolation_can_be_switched_off(bus: Bus, tmp_path: Path) -> None:
    async with serving(bus, tmp_path, isolation=False) as gateway, httpx.AsyncClient() as http:
        assert "cross-origin-opener-policy" not in (await http.get(f"{gateway.url}/healthz")).headers


async def test_a_page_that_is_not_built_is_said(http: httpx.AsyncClient) -> None:
    answer = await http.get("/")
    assert answer.status_code == 503
    assert "npm run build" in answer.text


async def test_health_and_figures(gateway: Gateway, http: httpx.AsyncClient) -> None:
    assert (await http.get("/healthz")).text == "ok\n"
    await gateway.assign("u0")
    async with talking(gateway) as talk:
        assignment = await talk.task()
        figures = (await http.get("/metrics")).text
        assert "fedbus_gateway_clients 1.0" in figures
        assert "fedbus_gateway_leases 1.0" in figures
        assert 'fedbus_unacknowledged{consumer="gateway"} 1.0' in figures
        assert "fedbus_dead_letters 0.0" in figures
        await talk.upload(assignment.lease, update())
        figures = (await http.get("/metrics")).text
        assert "fedbus_gateway_accepted_total 1.0" in figures
        (uploaded,) = re.findall(r"^fedbus_gateway_uploaded_bytes_total (.+)$", figures, re.MULTILINE)
        assert float(uploaded) == len(update())
    (listed,) = (await http.get("/runs")).json()
    assert (listed["run"], listed["status"]) == ("shop", "running")


@contextlib.asynccontextmanager
async def feed(http: httpx.AsyncClient, path: str, **headers: str) -> AsyncIterator[AsyncIterator[dict[str, str]]]:
    """The messages of a feed as dictionaries of their fields."""

    async def messages(answer: httpx.Response) -> AsyncIterator[dict[str, str]]:
        found: dict[str, str] = {}
        async for line in answer.aiter_lines():
            if not line:
                if "data" in found:
                    yield found
                found = {}
            elif not line.startswith(":"):
                name, _, value = line.partition(":")
                found[name] = value.strip()

    async with asyncio.timeout(DEADLINE_S), http.stream("GET", path, headers=headers) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        yield messages(answer)


async def test_a_feed_begins_at_the_first_event_and_goes_on_live(gateway: Gateway, http: httpx.AsyncClient) -> None:
    async with feed(http, "/runs/shop/events") as messages:
        first = await anext(messages)
        assert json.loads(first["data"])["type"] == "fedbus.run.started"
        published = await gateway.bus.publish(RoundStarted(run="shop", round=1))
        second = await anext(messages)
        assert second["id"] == str(published.sequence)


@pytest.mark.parametrize("how", ["header", "query"])
async def test_a_feed_is_resumed_after_the_last_event_that_was_seen(
    gateway: Gateway, http: httpx.AsyncClient, how: str
) -> None:
    for number in (1, 2, 3):
        await gateway.bus.publish(RoundStarted(run="shop", round=number))
    async with feed(http, "/runs/shop/events") as messages:
        seen = [await anext(messages) for _ in range(2)]
    last = seen[-1]["id"]
    path, headers = "/runs/shop/events", {"Last-Event-ID": last}
    if how == "query":
        path, headers = f"{path}?since={last}", {}
    async with feed(http, path, **headers) as messages:
        assert json.loads((await anext(messages))["data"])["data"]["round"] == 2


async def test_live_progress_comes_through_the_feed(gateway: Gateway, http: httpx.AsyncClient) -> None:
    said = Progress(run="shop", round=1, user="u0", client="c", phase="train", images_seen=3)
    async with feed(http, "/runs/shop/events") as messages:
        await anext(messages)
        hearing = asyncio.ensure_future(anext(messages))

        async def heard() -> bool:
            # Nobody can tell when the feed listens, and what is said before that is lost.
            await gateway.bus.say(said)
            return hearing.done()

        await wait_for(heard)
        message = hearing.result()
    assert message["event"] == "progress"
    assert json.loads(message["data"])["user"] == "u0"


async def test_a_feed_of_an_impossible_run_is_refused(http: httpx.AsyncClient) -> None:
    assert (await http.get("/runs/no%20run/events")).status_code in (400, 404)
    assert (await http.get("/runs/shop/events?since=minus")).status_code == 400


async def test_a_page_of_another_origin_may_not_connect(gateway: Gateway) -> None:
    with pytest.raises(InvalidStatus):
        async with connect(gateway.socket_url, origin="https://elsewhere.example"):  # type: ignore[arg-type]
            pass


async def test_a_page_of_the_gateways_own_origin_may(gateway: Gateway) -> None:
    async with talking(gateway, origin=gateway.url) as talk:
        assert talk.socket.state.name == "OPEN"


async def test_a_taken_port_is_named(gateway: Gateway) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        settings = gateway.settings.model_copy(update={"port": port})
        with pytest.raises(PortTakenError, match=str(port)) as taken:
            async with running_gateway(gateway.bus, settings):
                pass
    assert "FEDBUS_GATEWAY_PORT" in taken.value.hint


OWN = ("localhost", "LOCALHOST.:8700", "127.0.0.1:1", "[::1]:8700", "192.0.2.7", "fl.example:443")
FOREIGN = (
    "attacker.example",
    "attacker.example:8700",
    "localhost.attacker.example",
    "127.0.0.1.attacker.example",
    "::x",
)


async def test_only_the_gateways_own_names_are_served(bus: Bus, tmp_path: Path) -> None:
    async with serving(bus, tmp_path, hosts=("fl.example",)) as gateway, httpx.AsyncClient() as http:
        for host in OWN:
            assert (await http.get(f"{gateway.url}/healthz", headers={"Host": host})).status_code == 200
        for host in FOREIGN:
            answer = await http.get(f"{gateway.url}/healthz", headers={"Host": host})
            assert (answer.status_code, "[host]" in answer.text) == (421, True)
            assert "FEDBUS_GATEWAY_HOSTS" in answer.text
        address, port = gateway.url.removeprefix("http://").split(":")
        with pytest.raises(InvalidStatus, match="421"):
            async with connect("ws://attacker.example/ws", host=address, port=int(port)):
                pass


@pytest.mark.parametrize("path", ["/", "/runs", "/runs/shop/events", "/clients", "/metrics", "/healthz", "/nowhere"])
async def test_only_get_and_head_mean_something(http: httpx.AsyncClient, path: str) -> None:
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"):
        answer = await http.request(method, path)
        assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD")
    head = await http.head(path)
    assert (head.status_code < 500 or path == "/", head.content) == (True, b"")


async def test_a_feed_of_a_run_that_nobody_started_ends_with_the_reason(
    gateway: Gateway, http: httpx.AsyncClient
) -> None:
    answer = await http.get("/runs/nobody/events")
    assert (answer.status_code, answer.text) == (404, "there is no run nobody [run_unknown]\n")
    await gateway.bus.publish(gateway.started.model_copy(update={"run": "nobody"}))
    async with feed(http, "/runs/nobody/events") as messages:
        assert json.loads((await anext(messages))["data"])["type"] == "fedbus.run.started"
