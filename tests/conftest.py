"""The broker that the tests share, and how they wait."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TypeVar, overload
from uuid import uuid4

import pytest
import pytest_asyncio

import agents.words.events  # noqa: F401 - the words that every test speaks
from bus.broker.server import EmbeddedServer, embedded_server
from bus.client import Bus
from bus.recording.files import Recording, load_recording

T = TypeVar("T")
SMALL_RUN = Path(__file__).parent / "replay" / "small_run.jsonl.gz"


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
async def wait_for(condition: Callable[[], Awaitable[T]], *, within_s: float = 10.0) -> T: ...


@overload
async def wait_for(condition: Callable[[], T], *, within_s: float = 10.0) -> T: ...


async def wait_for(condition: Callable[[], Awaitable[T] | T], *, within_s: float = 10.0) -> T:
    """Polls until ``condition`` gives something true, and returns that; fails the test after ``within_s``."""
    async with asyncio.timeout(within_s):
        while True:
            found = condition()
            value = await found if isinstance(found, Awaitable) else found
            if value:
                return value
            await asyncio.sleep(0.01)
