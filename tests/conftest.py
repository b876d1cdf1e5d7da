"""The broker that the tests share, how they wait, and how several processes share the tests."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TypeVar, overload
from uuid import uuid4

import hypothesis
import pytest
import pytest_asyncio

import agents.words.events  # noqa: F401 - the words that every test speaks
from bus.broker.server import EmbeddedServer, embedded_server
from bus.client import Bus
from bus.recording.files import Recording, load_recording

T = TypeVar("T")
HERE = Path(__file__).parent
SMALL_RUN = HERE / "replay" / "small_run.jsonl.gz"
LONGEST = ("chaos", "commands", "browser", "broker/cluster", "installed", "broker/gateway", "broker", "property")
"""Folders whose files take longest: where processes share the tests, what is begun last decides when all is done."""
SURVIVED = "survived"
"""The property of a chaos test's report that is a row of the table at the end."""


# No test is timed, and the same tests see the same examples; ``make fuzz`` looks for others.
hypothesis.settings.register_profile("explore", deadline=None, print_blob=True)
hypothesis.settings.register_profile("same", hypothesis.settings.get_profile("explore"), derandomize=True)
hypothesis.settings.load_profile("same")

# The width of tables is the tests' own: readline, which pytest loads, tells child processes that of a terminal.
for _name in ("COLUMNS", "LINES"):
    os.environ.pop(_name, None)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):
        items.sort(key=_how_late)


def _how_late(item: pytest.Item) -> int:
    folder = item.path.relative_to(HERE).parent.as_posix() + "/"
    return next((at for at, long in enumerate(LONGEST) if folder.startswith(f"{long}/")), len(LONGEST))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What was survived, from reports: the tests may have been passed in other processes."""
    reports = [one for some in terminalreporter.stats.values() for one in some if isinstance(one, pytest.TestReport)]
    ended = [one for one in reports if one.when == "teardown"]
    rows = [cells for one in ended for name, cells in one.user_properties if name == SURVIVED]
    if not rows:
        return
    terminalreporter.section("survived, with the same final model and a clean ledger")
    width = max(len(what) for what, *_ in rows)
    for what, *others in rows:
        terminalreporter.write_line("  ".join((f"{what:{width}}", *others)))
    terminalreporter.write_line(f"{len(rows)} disturbances survived")


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def nats(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EmbeddedServer]:
    """One nats-server for the whole session, on a free loopback port."""
    async with embedded_server(tmp_path_factory.mktemp("nats")) as server:
        yield server


@pytest_asyncio.fixture
async def bus(nats: EmbeddedServer) -> AsyncIterator[Bus]:
    """A connected bus; the broker is shared, so use a run of your own."""
    async with Bus.connect(nats.settings, name="test", wait_s=10) as connected:
        yield connected


@pytest.fixture
def recorded_run() -> Recording:
    """A small run that was recorded once: its events and the objects that a replay needs."""
    return load_recording(SMALL_RUN)


@pytest.fixture
def unique_run() -> str:
    """A run name that nobody else uses."""
    return f"run-{uuid4().hex[:12]}"


@overload
async def wait_for(condition: Callable[[], Awaitable[T]], *, within_s: float = 30.0) -> T: ...


@overload
async def wait_for(condition: Callable[[], T], *, within_s: float = 30.0) -> T: ...


async def wait_for(condition: Callable[[], Awaitable[T] | T], *, within_s: float = 30.0) -> T:
    """Polls until ``condition`` gives something true, and returns that; fails the test after ``within_s``."""
    async with asyncio.timeout(within_s):
        while True:
            found = condition()
            value = await found if isinstance(found, Awaitable) else found
            if value:
                return value
            await asyncio.sleep(0.01)
