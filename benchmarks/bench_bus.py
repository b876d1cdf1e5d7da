"""What the bus costs per event beside raw nats-py: publish, deliver, acknowledge; ours also validates every event.

Both publish write-once with the same headers to the same stream and consume through a durable pull consumer. The
raw side keeps its own window of ``publish_async`` futures; its bodies are made beforehand and never parsed.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from uuid import uuid4

import nats.aio.client
from nats.js.api import AckPolicy, ConsumerConfig

from agents.words.events import TaskAssigned
from benchmarks.common import report
from bus.broker.server import EmbeddedServer, embedded_server
from bus.client import Bus
from bus.words.envelope import new_event
from bus.words.subjects import event_subject
from bus.words.values import Ref

EVENTS = 3000
WINDOW = 256
BATCH = 64
REPEATS = 3


def tasks(run: str) -> list[TaskAssigned]:
    """The events of the largest kind that a round has many of."""
    ref = Ref(name=f"sha256-{'a' * 64}", size=1, sha256="a" * 64)
    return [
        TaskAssigned(run=run, round=1, user=f"user-{number}", shard=ref, labels=(1,) * 20, spec=ref, seed=number)
        for number in range(EVENTS)
    ]


async def ours(server: EmbeddedServer) -> tuple[float, float]:
    """Seconds to publish and to consume through the bus."""
    run = f"ours-{uuid4().hex[:8]}"
    async with Bus.connect(server.settings, name="bench", wait_s=10) as bus:
        start = time.perf_counter()
        await bus.publish_many(tasks(run))
        published = time.perf_counter()
        async with bus.pull(run, f"ev.{run}.>", max_ack_pending=1024) as consumer:
            left = EVENTS
            while left:
                for delivery in await consumer.fetch(BATCH, timeout_s=10):
                    await delivery.ack()
                    left -= 1
        return published - start, time.perf_counter() - published


async def raw(server: EmbeddedServer) -> tuple[float, float]:
    """Seconds to publish and to consume with nats-py alone."""
    run = f"raw-{uuid4().hex[:8]}"
    client = nats.aio.client.Client()
    await client.connect(server.url, token=server.token)
    js = client.jetstream()
    events = [new_event(task, source="bench") for task in tasks(run)]
    ready = [(event_subject(event.data), event.to_json(), event.id) for event in events]
    start = time.perf_counter()
    futures = []
    for subject, body, id_ in ready:
        headers = {"Nats-Expected-Last-Subject-Sequence": "0", "Nats-Msg-Id": id_}
        futures.append(await js.publish_async(subject, body, headers=headers))
        if len(futures) == WINDOW:
            await asyncio.gather(*futures)
            futures.clear()
    await asyncio.gather(*futures)
    published = time.perf_counter()
    config = ConsumerConfig(
        durable_name=run, ack_policy=AckPolicy.EXPLICIT, filter_subject=f"ev.{run}.>", max_ack_pending=1024
    )
    await js.add_consumer("EVENTS", config)
    subscription = await js.pull_subscribe_bind(run, stream="EVENTS")
    left = EVENTS
    while left:
        for message in await subscription.fetch(BATCH, timeout=10):
            await message.ack_sync(timeout=5)
            left -= 1
    consumed = time.perf_counter()
    await client.close()
    return published - start, consumed - published


async def main() -> None:
    """Measures both in turn, several times, and reports the medians."""
    with tempfile.TemporaryDirectory() as store:
        async with embedded_server(Path(store)) as server:
            async with Bus.connect(server.settings, name="bench", wait_s=10):
                pass
            sides: list[tuple[Callable[[EmbeddedServer], Awaitable[tuple[float, float]]], list[tuple[float, float]]]]
            sides = [(raw, []), (ours, [])]
            for _ in range(REPEATS):
                for side, times in sides:
                    times.append(await side(server))
    (raw_publish, raw_consume), (our_publish, our_consume) = (
        [statistics.median(part) * 1e6 / EVENTS for part in zip(*times, strict=True)] for _, times in sides
    )
    report(
        "bus",
        ours=our_publish + our_consume,
        reference=raw_publish + raw_consume,
        unit="µs per event published, consumed, acknowledged (ours: and validated)",
        goal="at most 2 times the reference",
        publish_us=our_publish,
        publish_reference_us=raw_publish,
        consume_us=our_consume,
        consume_reference_us=raw_consume,
        events=EVENTS,
    )


if __name__ == "__main__":
    asyncio.run(main())
