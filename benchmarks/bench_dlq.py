"""How long ``fedbus dlq list`` takes where the dead-letter stream is full, beside one that is empty."""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.common import report
from bus.broker.direct_get import stream_state
from bus.broker.server import EmbeddedServer, embedded_server
from bus.broker.topology import DLQ_STREAM, MAX_LETTER_BYTES, MAX_LETTERS
from bus.client import Bus
from bus.stream.dead_letters import REASON

REPEATS, BATCH = 5, 200
BODY = b"x" * (MAX_LETTER_BYTES // MAX_LETTERS - 512)
"""As much as fits while the number of letters is the bound that is met first."""


def list_s(server: EmbeddedServer) -> float:
    """Seconds of the command, its own start included; the median of several."""
    env = {**os.environ, "NATS_URL": server.url, "NATS_TOKEN": server.token}
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "agents.cli", "dlq", "list"], env=env, check=True, capture_output=True)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


async def main() -> None:
    """Prints both."""
    with tempfile.TemporaryDirectory(prefix="fedbus-bench-") as folder:
        async with (
            embedded_server(Path(folder)) as server,
            Bus.connect(server.settings, name="bench", wait_s=30) as bus,
        ):
            empty = await asyncio.to_thread(list_s, server)
            js = bus.connection.js
            for start in range(0, MAX_LETTERS, BATCH):
                for n in range(start, start + BATCH):
                    await js.publish_async(f"dlq.given_up.labeller.{n + 1}", BODY, headers={REASON: "no"})
                await js.publish_async_completed()
            state = await stream_state(bus.connection, DLQ_STREAM, ">")
            full = await asyncio.to_thread(list_s, server)
    report(
        "dlq_list",
        ours=full,
        reference=empty,
        unit="seconds of the command",
        goal="under a second",
        letters=sum(state.subjects.values()),
        bytes=MAX_LETTERS * len(BODY),
    )


if __name__ == "__main__":
    asyncio.run(main())
