"""The page in Chromium against the real gateway, broker and agents: a tab joins, trains, and survives what happens."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import pytest_asyncio
from playwright.async_api import Browser, BrowserContext, Page, Route, expect
from playwright.async_api import Error as PageError

from agents.words.events import ModelEvaluated, RunFinished, UpdateSubmitted
from artifacts.manifest import load_manifest
from tests.browser.recorded import ARTIFACTS
from tests.browser.system import TOKEN, System, whole_system
from tests.chaos.proxy import proxy
from tests.conftest import wait_for

pytestmark = pytest.mark.asyncio(loop_scope="session")
WAIT_MS = 30_000
CUT = 20_000
"""Bytes of a conversation: most of them are of an upload of 35,368."""


@pytest_asyncio.fixture(loop_scope="session")
async def system(tmp_path: Path, client_page: Path, caplog: pytest.LogCaptureFixture) -> AsyncIterator[System]:
    caplog.set_level(logging.INFO, "agents")
    async with whole_system(tmp_path, client_page) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="session")
async def context(chromium: Browser) -> AsyncIterator[BrowserContext]:
    opened = await chromium.new_context()
    opened.set_default_timeout(WAIT_MS)
    yield opened
    await opened.close()


@contextlib.asynccontextmanager
async def tab(context: BrowserContext, url: str, query: str, *, token: str = TOKEN) -> AsyncIterator[Page]:
    """A tab with the page; fails at its end when the page threw something or broke its own security policy.

    What fails while it is open has a note of what the page showed then.
    """
    page = await context.new_page()
    problems: list[str] = []
    said: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on(
        "console", lambda message: problems.append(message.text) if "Content Security Policy" in message.text else None
    )
    page.on("console", lambda message: said.append(message.text))
    page.on("requestfailed", lambda request: said.append(f"{urlsplit(request.url).path} failed: {request.failure}"))
    page.on("crash", lambda _: said.append("crashed"))
    try:
        await page.goto(f"{url}/?{query}#token={token}")
        yield page
    except Exception as error:
        error.add_note(f"{query} showed: {await shown(page)}\nand said: {problems + said}")
        raise
    await page.close()
    assert problems == []


async def shown(page: Page) -> str:
    """The page's state and text, in one line."""
    try:
        async with asyncio.timeout(5):
            text = await page.evaluate("`${document.body.dataset.state}: ${document.body.innerText}`")
    except (TimeoutError, PageError) as error:
        return f"no answer, {error!r}"
    return " | ".join(str(text).split("\n"))


async def state(page: Page, *names: str) -> None:
    """Waits until the page is in one of these states."""
    await page.wait_for_function("names => names.includes(document.body.dataset.state)", arg=list(names))


@pytest.mark.parametrize(("isolation", "threads"), [(True, 2), (False, 1)])
async def test_a_tab_trains_a_whole_run(system: System, context: BrowserContext, isolation: bool, threads: int) -> None:
    async with (
        system.gateway(isolation=isolation) as url,
        tab(context, url, "client=tab-1&autostart=1&threads=2") as page,
    ):
        await system.start("run-a", users=3, rounds=2)
        events = await system.events_until("run-a", RunFinished)

        updates = [event for event in events if isinstance(event, UpdateSubmitted)]
        assert sorted((update.round, update.user) for update in updates) == [
            (number, f"user-00{user}") for number in (1, 2) for user in range(3)
        ]
        assert {update.client for update in updates} == {"tab-1"}
        assert {update.engine for update in updates} == {
            f"onnxruntime-web 1.19.2 wasm, {threads} thread{'s' if threads > 1 else ''}"
        }
        assert any(update.metrics.trained_images > 0 for update in updates)
        finished = events[-1]
        assert isinstance(finished, RunFinished)
        assert finished.status == "completed"
        accuracy = [event.updated.accuracy for event in events if isinstance(event, ModelEvaluated)]
        assert len(accuracy) == 3

        await expect(page.locator("#run .chip")).to_have_text("completed")
        await expect(page.locator("#run .chart .point")).to_have_count(3)
        await expect(page.locator("#run .dots [data-state=done]")).to_have_count(3)
        await expect(page.locator("#client .gallery li")).to_have_count(20)
        await state(page, "waiting")
        assert await page.title() == "fedbus – 6 done"


async def test_a_second_tab_fetches_nothing_that_the_first_one_has(system: System, context: BrowserContext) -> None:
    manifest = load_manifest(ARTIFACTS)
    artifacts = {file.sha256 for file in manifest.files_of("ort-training").values()}
    async with system.gateway() as url:
        fetched: list[str] = []
        context.on("request", lambda request: fetched.append(urlsplit(request.url).path.rpartition("/")[2]))
        async with tab(context, url, "client=tab-1&autostart=1"):
            await system.start("run-a", users=2)
            await system.events_until("run-a", RunFinished)
        assert artifacts <= set(fetched)
        fetched.clear()
        async with tab(context, url, "client=tab-2&autostart=1"):
            await system.start("run-b", users=2)
            events = await system.events_until("run-b", RunFinished)
        shards = {event.shard.sha256 for event in events if hasattr(event, "shard")}
        assert shards
        assert not (artifacts | shards) & set(fetched)


async def test_a_tab_goes_on_after_the_gateway_was_away(system: System, context: BrowserContext) -> None:
    async with contextlib.AsyncExitStack() as stack:
        gateway = contextlib.AsyncExitStack()
        url = await gateway.enter_async_context(system.gateway())
        await stack.enter_async_context(gateway)
        page = await stack.enter_async_context(tab(context, url, "client=tab-1&autostart=1"))
        await system.start("run-a", users=30)
        await system.events_until("run-a", UpdateSubmitted, count=3)
        await gateway.aclose()
        await state(page, "connecting", "training")
        async with system.gateway(port=urlsplit(url).port or 0):
            events = await system.events_until("run-a", RunFinished)
        updates = [event.user for event in events if isinstance(event, UpdateSubmitted)]
        assert len(updates) == len(set(updates)) == 30


async def test_a_tab_trains_although_each_of_its_files_was_lost_once(system: System, context: BrowserContext) -> None:
    """Those that come after the page itself: a browser asks for each but once."""
    files = ["worker", "ticker", "ort.training.wasm", "ort-training-wasm-simd-threaded.mjs", ".wasm"]
    lost: list[str] = []

    async def lose(route: Route) -> None:
        name = urlsplit(route.request.url).path.rpartition("/")[2]
        file = next((one for one in files if name.startswith(one) or name.endswith(one)), None)
        if file is None or file in lost:
            await route.continue_()
        else:
            lost.append(file)
            await route.abort("connectionreset")

    await context.route("**/*", lose)
    async with system.gateway() as url, tab(context, url, "client=tab-1&autostart=1"):
        await system.start("run-a", users=2)
        await system.events_until("run-a", RunFinished)
    assert sorted(lost) == sorted(files)


@pytest.mark.parametrize(
    "tries",
    [
        pytest.param(3, id="a few seconds"),
        # With the pauses between them the next one succeeds between 31 and 62 seconds after the loss.
        pytest.param(6, id="a minute", marks=[pytest.mark.chaos, pytest.mark.timeout(240)]),
    ],
)
async def test_a_tab_that_loses_the_gateway_in_an_upload_goes_on_at_its_offset(
    system: System, context: BrowserContext, tries: int
) -> None:
    """The usual lease has to outlast it, so the lease is the default's."""
    async with (
        system.gateway(chunk_bytes=1_024) as url,
        proxy(url.removeprefix("http://")) as front,
        tab(context, f"http://{front.address}", "client=tab-1&autostart=1") as page,
    ):
        sockets: list[str] = []
        page.on("websocket", lambda socket: sockets.append(socket.url))
        front.cut_at(CUT)
        await system.start("run-a", users=1)
        await wait_for(lambda: any(sent >= CUT for sent in front.upstream), within_s=60)
        lost, before = len(front.upstream), len(sockets)
        front.refusing = True
        await wait_for(lambda: len(sockets) - before >= tries, within_s=90)
        front.refusing = False
        (update,) = [one for one in await system.events_until("run-a", RunFinished) if isinstance(one, UpdateSubmitted)]
        size = update.update.size
        assert size - CUT < max(front.upstream[lost:]) < size


async def test_a_person_starts_and_pauses_with_the_buttons(system: System, context: BrowserContext) -> None:
    async with system.gateway() as url, tab(context, url, "client=tab-1") as page:
        await system.start("run-a", users=20)
        await state(page, "idle")
        await expect(page.locator("#run h2")).to_contain_text("run-a")
        await page.click("#start")
        await system.events_until("run-a", UpdateSubmitted)
        figure = page.locator("#client .figure strong").first
        # The tab hears a moment later that its update was accepted.
        await expect(figure).not_to_have_text("0")
        await page.click("#pause")
        await state(page, "paused")
        done = await figure.text_content()
        assert done is not None
        assert 1 <= int(done) < 20
        await page.click("#start")
        events = await system.events_until("run-a", RunFinished)
        assert sum(isinstance(event, UpdateSubmitted) for event in events) == 20


async def test_a_model_that_the_browser_cannot_hold_is_refused_in_words_before_it_is_downloaded(
    system: System, context: BrowserContext, tmp_path: Path
) -> None:
    """Full fine-tuning of a large model; that the manifest says so is enough, since nothing else is to be read."""
    folder = tmp_path / "large"
    shutil.copytree(ARTIFACTS, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["memory"] = {name: 1_000_000 * value for name, value in manifest["memory"].items()}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    files = {file.sha256 for _, file in load_manifest(ARTIFACTS).files.items()}
    fetched: list[str] = []
    context.on("request", lambda request: fetched.append(urlsplit(request.url).path.rpartition("/")[2]))
    async with system.gateway() as url, tab(context, url, "client=tab-1&autostart=1") as page:
        await system.start("run-a", users=1, artifacts=folder)
        await expect(page.locator("#problem")).to_contain_text("GiB of memory to train")
    assert not files & set(fetched)


async def test_the_tasks_of_a_tab_that_is_closed_go_to_another_at_once(system: System, context: BrowserContext) -> None:
    async with system.gateway(lease_s=600.0) as url:
        await system.start("run-a", users=20)
        async with tab(context, url, "client=tab-1&autostart=1"):
            await system.events_until("run-a", UpdateSubmitted)
        async with tab(context, url, "client=tab-2&autostart=1"):
            events = await system.events_until("run-a", RunFinished)
    assert {event.client for event in events if isinstance(event, UpdateSubmitted)} == {"tab-1", "tab-2"}


async def test_a_wrong_token_is_told_and_not_tried_again(system: System, context: BrowserContext) -> None:
    async with system.gateway() as url, tab(context, url, "autostart=1", token="guessed") as page:
        await state(page, "error")
        await expect(page.locator("#problem")).to_contain_text("token")
        await expect(page.locator("#run")).to_contain_text("#token=")
        await expect(page.locator("#start")).to_be_enabled()


async def test_a_newer_tab_of_the_same_name_takes_over(system: System, context: BrowserContext) -> None:
    async with system.gateway() as url, tab(context, url, "client=tab-1&autostart=1") as older:
        await state(older, "waiting")
        async with tab(context, url, "client=tab-1&autostart=1") as newer:
            await state(newer, "waiting")
            await state(older, "error")
            await expect(older.locator("#problem")).to_contain_text("another connection")
