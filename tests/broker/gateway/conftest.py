"""A gateway of its own broker for each test, and a client that says exactly what it is told to."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest_asyncio
from websockets.asyncio.client import ClientConnection, connect

from agents.core.exchange.messages import (
    Assignment,
    Hello,
    Ready,
    UploadBegin,
    UploadCommit,
    UploadOffset,
    encode_chunk,
    parse_server_message,
)
from agents.core.learning.encodings import encode_update
from agents.core.rounds.state import RoundState
from agents.gateway.service import running_gateway
from agents.gateway.settings import GatewaySettings
from agents.words.events import RoundPlanned, RunStarted, TaskAssigned, UpdateMetrics
from agents.words.run_config import QuorumSpec, RunConfig, RunDataset, UserShard
from bus.broker.server import EmbeddedServer, embedded_server
from bus.client import Bus
from bus.words.payload import Payload
from bus.words.subjects import events_of
from bus.words.values import Frozen, Ref
from data.shards import encode_shard
from tests.builders import config, planned, run_started
from tests.conftest import wait_for

DEADLINE_S = 20.0
PARAMETERS = 300_000
"""Enough that an update has several chunks."""
LABELS = (1, None, 0)


@pytest_asyncio.fixture
async def nats(tmp_path: Path) -> AsyncIterator[EmbeddedServer]:
    """A broker of the test's own: the gateway's consumer keeps what a test leaves undone."""
    async with embedded_server(tmp_path / "nats") as server:
        yield server


@dataclass
class Gateway:
    """A running gateway and the run that it serves."""

    bus: Bus
    url: str
    settings: GatewaySettings
    run: str
    started: RunStarted
    dataset: RunDataset
    base: Ref

    @property
    def socket_url(self) -> str:
        return self.url.replace("http", "ws", 1) + "/ws"

    async def assign(self, *users: str, round: int = 1, deadline_s: float = 60.0) -> list[TaskAssigned]:
        """Plans the round and assigns these users' tasks."""
        plan = planned(len(users), len(users), round=round, deadline_s=deadline_s).model_copy(
            update={"run": self.run, "base_model": self.base}
        )
        await self.bus.publish(RoundPlanned.model_validate(plan.model_dump()))
        shard = self.dataset.users[0].shard
        tasks = [
            TaskAssigned(run=self.run, round=round, user=user, shard=shard, labels=LABELS, spec=shard, seed=1)
            for user in users
        ]
        await self.bus.publish_many(tasks)
        return tasks

    async def events(self, kind: type[Payload]) -> list[Any]:
        """What the stream holds of this kind."""
        async with self.bus.follow(events_of(self.run), live=False) as items:
            return [one.event.data async for one in items if hasattr(one, "event") and isinstance(one.event.data, kind)]


@contextlib.asynccontextmanager
async def serving(
    bus: Bus,
    folder: Path,
    run_config: RunConfig | None = None,
    *,
    parameters: int = PARAMETERS,
    **settings: object,
) -> AsyncIterator[Gateway]:
    """A gateway with one run whose users have a shard each."""
    images = np.arange(3 * 4 * 4, dtype=np.uint8).reshape(3, 4, 4, 1)
    shard = await bus.objects.put(encode_shard(images))
    base = await bus.objects.put(np.zeros(parameters, "<f4").tobytes())
    dataset = RunDataset(
        classes=("a", "b", "c"),
        users=(UserShard(user="u0", shard=shard),),
        held_out=await bus.objects.put(encode_shard(images, np.zeros(3, np.int64))),
        truth=await bus.objects.put(b'{"u0": [1, 2, 0]}'),
    )
    ref = await bus.objects.put(dataset.model_dump_json().encode())
    started = run_started(run_config or config()).model_copy(
        update={"run": "shop", "dataset": ref, "artifacts": shard, "base_model": base}
    )
    await bus.publish(started)
    chosen = GatewaySettings.model_validate(
        {"port": 0, "spool_dir": folder / "spool", "static_dir": folder, "lease_s": 20.0, **settings}
    )
    async with running_gateway(bus, chosen) as url:
        yield Gateway(bus, url, chosen, "shop", started, dataset, base)


@pytest_asyncio.fixture
async def gateway(bus: Bus, tmp_path: Path) -> AsyncIterator[Gateway]:
    """A gateway with the usual settings."""
    async with serving(bus, tmp_path) as running:
        yield running


@pytest_asyncio.fixture
async def http(gateway: Gateway) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the gateway's HTTP side, once the gateway has read the stream."""
    async with httpx.AsyncClient(base_url=gateway.url, timeout=DEADLINE_S) as client:
        await readiness(client)
        yield client


async def readiness(client: httpx.AsyncClient) -> None:
    """Waits until the gateway has read the stream."""

    async def ready() -> bool:
        return (await client.get("/readyz")).status_code == 200

    await wait_for(ready)


async def decided(gateway: Gateway) -> Payload | None:
    """What the aggregator says of round 1 as the stream is now."""
    state = RoundState(gateway.run, 1, QuorumSpec())
    async with gateway.bus.follow(events_of(gateway.run), live=False) as items:
        stored = [one async for one in items if hasattr(one, "event")]
    for one in stored:
        state.fold(one)
    return state.decide(stored[-1].time) if state.plan else None


class Talk:
    """One WebSocket conversation."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket

    async def say(self, message: Frozen | str | bytes) -> None:
        await self.socket.send(message.model_dump_json() if isinstance(message, Frozen) else message)

    async def hear(self) -> Any:
        async with asyncio.timeout(DEADLINE_S):
            return parse_server_message(str(await self.socket.recv()))

    async def hear_a(self, kind: type[Frozen]) -> Any:
        """The next message, which must be of this kind."""
        message = await self.hear()
        assert isinstance(message, kind), message
        return message

    async def closed_with(self) -> int | None:
        """The code that the gateway closes with."""
        async with asyncio.timeout(DEADLINE_S):
            await self.socket.wait_closed()
        return self.socket.close_code

    async def task(self) -> Assignment:
        """Asks for a task and gets it."""
        await self.say(Ready())
        assignment: Assignment = await self.hear_a(Assignment)
        return assignment

    async def begin(self, lease: str, data: bytes, *, upload: int = 1, sha256: str | None = None) -> int:
        """Announces an upload; the offset at which the gateway wants it to go on."""
        digest = sha256 or hashlib.sha256(data).hexdigest()
        await self.say(UploadBegin(lease=lease, upload=upload, size=len(data), sha256=digest))
        answer: UploadOffset = await self.hear_a(UploadOffset)
        return answer.offset

    async def send(self, data: bytes, offset: int = 0, *, upload: int = 1, until: int | None = None) -> int:
        """Sends the bytes from ``offset`` on, up to ``until``; how far the gateway has them."""
        end = len(data) if until is None else until
        while offset < end:
            await self.say(encode_chunk(upload, offset, data[offset : min(end, offset + 400_000)]))
            offset = (await self.hear_a(UploadOffset)).offset
        return offset

    async def upload(self, lease: str, data: bytes, metrics: UpdateMetrics | None = None, **begin: Any) -> Any:
        """A whole upload; what the gateway says to it."""
        offset = await self.begin(lease, data, **begin)
        await self.send(data, offset)
        await self.say(UploadCommit(lease=lease, upload=1, metrics=metrics or METRICS))
        return await self.hear()


METRICS = UpdateMetrics(predictions=(1, 0, 2), examples=2, mismatched_images=1, trained_images=7)


def update(value: float = 0.25) -> bytes:
    """An update of the right size."""
    return encode_update(np.full(PARAMETERS, value, np.float32), "float32")


@contextlib.asynccontextmanager
async def talking(
    gateway: Gateway,
    name: str = "one",
    *,
    token: str = "",
    resume: tuple[str, ...] = (),
    welcome: bool = True,
    **options: Any,
) -> AsyncIterator[Talk]:
    """A conversation that has begun with hello and welcome."""
    async with connect(gateway.socket_url, compression=None, **options) as socket:
        talk = Talk(socket)
        await talk.say(Hello(protocol=1, token=token, client=name, engine="test", resume=resume))
        if welcome:
            assert (await talk.hear()).type == "welcome"
        yield talk
