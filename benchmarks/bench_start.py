"""How long agents take to start where 1,000 and 10,000 runs are over, beside an empty stream, and reading it all.

Each is measured from the start of its following until it may decide, three times; the median counts.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from agents.aggregator.service import Aggregator
from agents.dispatcher.service import Dispatcher
from agents.gateway.hub import Hub
from agents.gateway.settings import GatewaySettings
from agents.runtime.tasks import background
from agents.words.events import RoundStarted, RunFinished, RunsSettled
from agents.words.run_config import RunDataset, UserShard
from benchmarks.common import report
from bus.broker.server import embedded_server
from bus.client import Bus
from bus.words.envelope import Stored
from bus.words.payload import Payload
from bus.words.subjects import EVENTS, events_of_type
from bus.words.values import Ref
from tests.builders import assigned, config, labelled, planned, run_started, submitted

RUNS, USERS, REPEATS = (1_000, 10_000), 5, 3
LIMIT_S = 300.0


def events_of_a_run(run: str, dataset: Ref) -> list[Payload]:
    """A run of one round from its start to its end, in order; what its objects hold nobody looks at."""
    users = [f"u{number}" for number in range(USERS)]
    said: list[Payload] = [run_started(config(users=USERS)).model_copy(update={"dataset": dataset})]
    said += [labelled(user, (1,) * 20) for user in users]
    said += [RoundStarted(run=run, round=1), planned(USERS, USERS)]
    said += [assigned(user) for user in users]
    said += [submitted(user) for user in users]
    said += [RunFinished(run=run, status="completed", rounds=1)]
    return [one.model_copy(update={"run": run}) for one in said]


async def until(condition: Callable[[], bool]) -> None:
    """Waits for what has no event to wait for."""
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.001)


async def follower_s(bus: Bus, kind: Callable[[Bus], Dispatcher | Aggregator]) -> float:
    """Seconds until a dispatcher or an aggregator may decide."""
    agent = kind(bus)
    began = time.perf_counter()
    async with asyncio.timeout(LIMIT_S), background(agent.serve()):
        await until(lambda: agent._follower.is_live)
        return time.perf_counter() - began


async def gateway_s(bus: Bus) -> float:
    """Seconds until a gateway has caught up."""
    with tempfile.TemporaryDirectory(prefix="fedbus-bench-") as spool:
        began = time.perf_counter()
        async with asyncio.timeout(LIMIT_S), Hub(bus, GatewaySettings(spool_dir=Path(spool))) as hub:
            await until(lambda: hub.is_caught_up)
            return time.perf_counter() - began


async def whole_s(bus: Bus) -> float:
    """Seconds in which a dispatcher takes in everything from the first event on, its words aside."""
    agent = Dispatcher(bus)
    began = time.perf_counter()
    async with bus.follow(EVENTS, live=False) as items:
        async for item in items:
            if isinstance(item, Stored):
                await agent.take(item)
    return time.perf_counter() - began


async def median_of(measure: Callable[[], Awaitable[float]]) -> float:
    """The median of several measurements."""
    return statistics.median([await measure() for _ in range(REPEATS)])


@contextlib.asynccontextmanager
async def connected(folder: Path) -> AsyncIterator[Bus]:
    """A broker of its own and a connection."""
    async with embedded_server(folder) as server, Bus.connect(server.settings, name="bench", wait_s=30) as bus:
        yield bus


async def figures(bus: Bus) -> dict[str, float]:
    """The seconds of each agent."""
    return {
        "dispatcher": await median_of(lambda: follower_s(bus, Dispatcher)),
        "aggregator": await median_of(lambda: follower_s(bus, Aggregator)),
        "gateway": await median_of(lambda: gateway_s(bus)),
    }


async def main() -> None:
    """Prints what starting costs."""
    with tempfile.TemporaryDirectory(prefix="fedbus-bench-") as folder:
        async with connected(Path(folder) / "empty") as bus:
            empty = await figures(bus)
        for runs in RUNS:
            async with connected(Path(folder) / str(runs)) as bus:
                await measure(bus, runs, empty)


async def measure(bus: Bus, runs: int, empty: dict[str, float]) -> None:
    """Fills a stream with runs that are over, and prints what a start costs beside one with ``empty``."""
    shard = await bus.objects.put(b"shard")
    users = tuple(UserShard(user=f"u{number}", shard=shard) for number in range(USERS))
    body = RunDataset(classes=("a", "b"), users=users, held_out=shard).model_dump_json().encode()
    dataset = await bus.objects.put(body)
    written = 0
    for start in range(0, runs, 20):
        said = [one for at in range(start, start + 20) for one in events_of_a_run(f"run-{at}", dataset)]
        written += len(await bus.publish_many(said))
    whole = await whole_s(bus)
    async with asyncio.timeout(LIMIT_S), background(Dispatcher(bus).serve()):
        while await bus.newest(events_of_type(RunsSettled.TYPE)) is None:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    for agent, seconds in (await figures(bus)).items():
        report(
            f"start_{agent}_{runs}",
            ours=seconds,
            reference=empty[agent],
            unit="seconds until it may decide",
            goal="what is open",
            runs_that_are_over=runs,
            events=written,
            whole_stream_s=whole,
            of_the_whole=seconds / whole,
        )


if __name__ == "__main__":
    asyncio.run(main())
