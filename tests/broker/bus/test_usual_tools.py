"""What the usual NATS tools ask a broker first is answered to the operator, and to nobody else."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import nats.errors
import pytest_asyncio
from nats.aio.client import Client

from bus.broker.permissions import new_passwords
from bus.broker.server import EmbeddedServer, embedded_server
from bus.broker.topology import DLQ_STREAM, EVENT_STREAM
from bus.client import Bus
from bus.words.payload import OPERATOR
from tests.builders import config, run_started


@pytest_asyncio.fixture
async def guarded(tmp_path: Path) -> AsyncIterator[EmbeddedServer]:
    """A broker with one user for each role, and one event."""
    async with embedded_server(tmp_path / "nats", passwords=new_passwords()) as server:
        async with Bus.connect(server.settings, name="cli", wait_s=10) as bus:
            await bus.publish(run_started(config()))
        yield server


@contextlib.asynccontextmanager
async def logged_in(server: EmbeddedServer, role: str) -> AsyncIterator[Client]:
    """A plain NATS client of this role."""
    nc = Client()
    await nc.connect(server.url, user=role, password=server.passwords[role], error_cb=_ignored)
    try:
        yield nc
    finally:
        await nc.close()


async def _ignored(_: Exception) -> None:
    """What is denied is told here too."""


async def test_the_operator_may_look_at_the_account_the_streams_and_their_messages(guarded: EmbeddedServer) -> None:
    async with logged_in(guarded, OPERATOR) as nc:
        js = nc.jetstream(timeout=10)
        assert (await js.account_info()).streams >= 3
        assert {EVENT_STREAM, DLQ_STREAM} <= {one.config.name for one in await js.streams_info()}
        assert await js.find_stream_name_by_subject("ev.run.run.started") == EVENT_STREAM
        assert b"run.started" in (await js.get_msg(EVENT_STREAM, seq=1, direct=False)).data
        assert await js.consumers_info(EVENT_STREAM) == []
        reading = await js.pull_subscribe("ev.>", stream=EVENT_STREAM)
        (message,) = await reading.fetch(1, timeout=10)
        assert message.subject == "ev.run.run.started"
        await message.ack()


async def test_an_agent_may_not(guarded: EmbeddedServer) -> None:
    async with logged_in(guarded, "labeller") as nc:
        for asking in ("$JS.API.INFO", "$JS.API.STREAM.NAMES", "$JS.API.STREAM.LIST"):
            assert not await answered(nc, asking)


async def answered(nc: Client, subject: str) -> bool:
    try:
        await nc.request(subject, b"", timeout=0.5)
    except (TimeoutError, nats.errors.Error):
        return False
    return True
