"""How fast a 64 MB object is read beside the stock client, and that streaming one takes constant memory."""

from __future__ import annotations

import asyncio
import os
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Awaitable, Callable
from pathlib import Path

import nats.aio.client

from benchmarks.common import report
from bus.broker.server import embedded_server
from bus.client import Bus
from bus.words.values import Ref

SIZE = 64 << 20
MEGABYTE = 1e6
REPEATS = 3


async def seconds(action: Callable[[], Awaitable[object]]) -> float:
    """The median time of ``action``."""
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        await action()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


async def streaming_peak(bus: Bus, ref: Ref) -> float:
    """Largest memory that Python held while it streamed the object, MB."""
    tracemalloc.start()
    try:
        async for _ in bus.objects.stream(ref):
            pass
        return tracemalloc.get_traced_memory()[1] / MEGABYTE
    finally:
        tracemalloc.stop()


async def main() -> None:
    """Measures put, get and the stock get of the same object, and the memory of streams of two sizes."""
    data = os.urandom(SIZE)
    client = nats.aio.client.Client()
    with tempfile.TemporaryDirectory() as store:
        async with (
            embedded_server(Path(store)) as server,
            Bus.connect(server.settings, name="bench", wait_s=10) as bus,
        ):
            await client.connect(server.url, token=server.token)
            start = time.perf_counter()
            ref = await bus.objects.put(data)
            put_s = time.perf_counter() - start
            quarter = await bus.objects.put(data[: SIZE // 4])
            stock = await client.jetstream().object_store("objects")
            ours_s = await seconds(lambda: bus.objects.get(ref))
            stock_s = await seconds(lambda: stock.get(ref.name))
            small, large = await streaming_peak(bus, quarter), await streaming_peak(bus, ref)
            await client.close()
    report(
        "objects",
        ours=SIZE / MEGABYTE / ours_s,
        reference=SIZE / MEGABYTE / stock_s,
        unit="MB/s read of a 64 MiB object",
        goal="at least 5 times the reference",
        put_mb_s=SIZE / MEGABYTE / put_s,
        stream_peak_mb=large,
        stream_peak_quarter_size_mb=small,
    )


if __name__ == "__main__":
    asyncio.run(main())
