"""What every agent says of itself over HTTP: whether it is ready, and its figures, with a broker or without."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
import pytest_asyncio
from prometheus_client.parser import text_string_to_metric_families

from agents.aggregator import service as aggregator
from agents.cli.here import AGENTS
from agents.dispatcher import service as dispatcher
from agents.runtime.metrics import BROKER_S
from agents.runtime.process import Body, run_agent
from agents.runtime.round_figures import RoundFigure, collect_sources, round_figures
from agents.runtime.tasks import background, until
from agents.words.events import RoundFailed, RoundStarted
from bus.broker.server import EmbeddedServer, embedded_server
from bus.broker.settings import BusSettings
from bus.client import Bus
from bus.errors import FedbusError, PortTakenError
from bus.words.envelope import Stored
from bus.words.subjects import events_of
from bus.work.worker import work
from tests.broker.bus.conftest import failed
from tests.builders import config, run_started
from tests.conftest import wait_for

PAGE = Path(__file__).parents[2] / "docs" / "operations.md"
Figures = dict[str, dict[tuple[str, ...], float]]


@pytest_asyncio.fixture
async def nats(tmp_path: Path) -> AsyncIterator[EmbeddedServer]:
    """A broker of the test's own, since its figures are counted and it may be killed."""
    async with embedded_server(tmp_path / "nats") as server:
        yield server


@contextlib.asynccontextmanager
async def agent(
    role: str, body: Body, settings: BusSettings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> AsyncIterator[httpx.AsyncClient]:
    """A running agent whose figures are looked at; gives a client of its port."""
    monkeypatch.setenv("FEDBUS_METRICS_PORT", "0")
    caplog.set_level("INFO")
    caplog.clear()
    async with background(run_agent(role, body, look=lambda: settings)):
        said = await wait_for(lambda: re.search(r"figures on (http://\S+)/metrics", caplog.text))
        async with httpx.AsyncClient(base_url=said[1], timeout=10) as http:
            yield http


async def idle(bus: Bus, stop: asyncio.Event) -> None:
    await stop.wait()


async def figures(http: httpx.AsyncClient) -> Figures:
    """Values by name and the values of their labels, in the order of the labels' names."""
    answer = await http.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")
    found: Figures = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(value for _, value in sorted(sample.labels.items()))] = sample.value
    return found


async def status(http: httpx.AsyncClient, path: str) -> int:
    return (await http.get(path)).status_code


async def is_ready(http: httpx.AsyncClient) -> bool:
    return await status(http, "/readyz") == 200


def free_ports(count: int) -> int:
    """The first of ``count`` ports in a row that are free now."""
    for first in range(20_000 + os.getpid() % 1_000, 60_000, count):
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(first, first + count):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first
    raise AssertionError("no free ports")


async def test_an_agent_is_healthy_before_it_is_ready_and_ready_once_it_has_its_broker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    port = free_ports(1)
    async with embedded_server(tmp_path / "nats") as first:
        settings = BusSettings(url=f"nats://127.0.0.1:{port}", token=first.settings.token)
    async with agent("idle", idle, settings, monkeypatch, caplog) as http:
        assert (await status(http, "/healthz"), await status(http, "/readyz")) == (200, 503)
        now = await figures(http)
        assert now["fedbus_bus_connected"][()] == 0
        assert now["fedbus_ready"][()] == 0
        ((_, role, _),) = now["fedbus_build_info"]
        assert role == "idle"
        async with embedded_server(tmp_path / "nats", port=port):
            await wait_for(lambda: is_ready(http))
            now = await figures(http)
        assert (now["fedbus_bus_connected"][()], now["fedbus_ready"][()]) == (1, 1)


async def test_the_figures_of_a_worker_count_what_waits_comes_again_and_is_given_up(
    nats: EmbeddedServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def handler(stored: Stored) -> None:
        if isinstance(stored.event.data, RoundFailed) and stored.event.data.round == 1:
            raise FedbusError("not today")
        await asyncio.Event().wait()

    async def body(bus: Bus, stop: asyncio.Event) -> None:
        await bus.publish_many(failed("shop", number) for number in range(1, 7))
        async with bus.pull("worker", events_of("shop"), max_deliver=2, max_ack_pending=2, backoff=[0.01]) as consumer:
            await until(stop, work(consumer, handler, concurrency=2))

    async with agent("worker", body, nats.settings, monkeypatch, caplog) as http:

        async def settled() -> Figures | None:
            now = await figures(http)
            return now if now.get("fedbus_dead_letters") == {(): 1} and "fedbus_queue_depth" in now else None

        now = await wait_for(settled)
        assert now is not None
        assert now["fedbus_events_published_total"] == {(): 6}
        assert now["fedbus_given_up_total"] == {("worker",): 1}
        assert now["fedbus_redeliveries_total"] == {("worker",): 1}
        assert now["fedbus_queue_depth"][("worker",)] + now["fedbus_unacknowledged"][("worker",)] == 5


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_figures_do_not_wait_for_a_broker_that_is_away_or_hangs(
    nats: EmbeddedServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: signal.Signals
) -> None:
    async def body(bus: Bus, stop: asyncio.Event) -> None:
        async with bus.pull("worker", events_of("shop")):
            await stop.wait()

    async with agent("worker", body, nats.settings, monkeypatch, caplog) as http:

        async def measured() -> bool:
            return "fedbus_queue_depth" in await figures(http)

        await wait_for(measured)
        nats.process.send_signal(number)
        try:

            async def missing() -> bool:
                began = time.monotonic()
                now = await figures(http)
                assert time.monotonic() - began < BROKER_S + 2
                return "fedbus_queue_depth" not in now and "fedbus_dead_letters" not in now

            await wait_for(missing)
            assert (await status(http, "/healthz")) == 200
            if number == signal.SIGKILL:
                assert (await status(http, "/readyz")) == 503
        finally:
            with contextlib.suppress(ProcessLookupError):
                nats.process.send_signal(signal.SIGCONT)


async def test_a_port_that_is_taken_ends_the_agent_with_a_typed_error(
    nats: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setenv("FEDBUS_METRICS_PORT", str(taken.getsockname()[1]))
        with pytest.raises(PortTakenError, match="cannot listen") as error:
            await run_agent("idle", idle, look=lambda: nats.settings)
    assert "FEDBUS_METRICS_PORT" in error.value.hint


@pytest.mark.parametrize("role", ["dispatcher", "aggregator"])
async def test_the_agents_that_follow_rounds_say_how_old_the_open_ones_are(
    nats: EmbeddedServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, role: str
) -> None:
    body = {"dispatcher": dispatcher.serve, "aggregator": aggregator.serve}[role]
    async with Bus.connect(nats.settings, name="test", wait_s=10) as bus:
        dataset = await bus.objects.put(
            b'{"classes": ["a", "b"], "users": [{"user": "u", "shard": %s}], "held_out": %s}'
            % ((run_started(config()).dataset.model_dump_json().encode(),) * 2)
        )
        started = run_started(config(rounds=2)).model_copy(update={"run": "shop", "dataset": dataset})
        await bus.publish(started)
        await bus.publish(RoundStarted(run="shop", round=1))
        async with agent(role, body, nats.settings, monkeypatch, caplog) as http:
            await wait_for(lambda: is_ready(http))
            now = await figures(http)
            assert now["fedbus_rounds"][("open",)] == 1
            assert 0 <= now["fedbus_round_age_seconds"][("1", "shop")] < 60
            await bus.publish(RoundFailed(run="shop", round=1, reason="why"))

            async def over() -> bool:
                now = await figures(http)
                return now["fedbus_rounds"][("open",)] == 0 and "fedbus_round_age_seconds" not in now

            await wait_for(over)


@pytest.mark.parametrize("body", [dispatcher.serve, aggregator.serve])
async def test_an_agent_that_has_read_nothing_yet_does_not_count_as_ready(bus: Bus, body: Body) -> None:
    sources, stop = collect_sources(), asyncio.Event()
    serving = asyncio.create_task(body(bus, stop))
    await asyncio.sleep(0)
    try:
        # Whoever looks at this moment, before the agent's second step, would find nothing that is not ready.
        assert [one.is_ready() for one in sources] == [False]
    finally:
        stop.set()
        await serving


def test_a_round_is_in_the_last_state_that_it_reached() -> None:
    since = datetime.now(UTC) - timedelta(seconds=100)
    flags = [(False, False, False), (True, False, False), (True, True, False), (False, False, True)]
    rounds = [
        RoundFigure("shop", number, since, closed=closed, published=published, failed=lost)
        for number, (closed, published, lost) in enumerate(flags)
    ]
    age, *states = round_figures(rounds)
    assert age.labels == {"run": "shop", "round": "0"}
    assert age.value == pytest.approx(100, abs=5)
    assert {one.labels["state"]: one.value for one in states} == {"open": 1, "closed": 1, "published": 1, "failed": 1}


def test_nothing_is_loaded_where_nobody_looks() -> None:
    script = "import sys, agents.dispatcher; print([m for m in ('uvicorn', 'prometheus_client') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


async def test_up_serves_the_figures_of_all_agents_on_ports_in_a_row(tmp_path: Path) -> None:
    first = free_ports(len(AGENTS))
    command = ("up", "--store", str(tmp_path / "store"), "--port", "0", "--nats-port", "0")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "agents.cli", *command, "--metrics-port", str(first)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        assert process.stdout is not None
        said = ""
        async with asyncio.timeout(60):
            while "Ctrl-C" not in said:
                said += (await process.stdout.readline()).decode()
        shown: set[str] = set()
        for port, name in enumerate(AGENTS, first):
            assert f"{name} {port}" in said
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
                await wait_for(lambda http=http: _answers(http), within_s=30)
                now = await figures(http)
            ((_, role, _),) = now["fedbus_build_info"]
            assert role == name
            shown |= set(now)
        assert now["fedbus_gateway_clients"] == {(): 0}
        # Only an open round has an age.
        described = set(re.findall(r"`(fedbus_[a-z_]+)`", PAGE.read_text())) - {"fedbus_round_age_seconds"}
        assert shown == described
    finally:
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 30) == 0


async def _answers(http: httpx.AsyncClient) -> bool:
    try:
        return await is_ready(http)
    except httpx.TransportError:
        return False
