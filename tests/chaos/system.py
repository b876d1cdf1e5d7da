"""A small run on a whole fedbus of real processes, which a test may disturb while it goes on."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from agents.audit.verify import Verdict, verify_run
from agents.cli.client_mix import ClientMix
from agents.cli.options import make_config
from agents.cli.run_setup import RunSources, start_run
from agents.cli.system import System, running_system
from agents.runtime.shipped import DEFAULT_ARTIFACTS
from agents.words.events import ModelPublished, RoundStarted, RunFinished
from agents.words.run_config import RunConfig
from bus.broker.settings import BusSettings
from bus.client import Bus
from bus.words.envelope import Stored
from bus.words.payload import Payload
from bus.words.subjects import events_of
from tests.conftest import wait_for

P = TypeVar("P", bound=Payload)
RUN = "chaos"
RUN_S = 150.0
LEASE_S, HEARTBEAT_S = 2.0, 1.0


@dataclass(frozen=True)
class Outcome:
    """What became of a run.

    Attributes:
        model: SHA-256 of the final model.
        models: of each round's model.
        crashed: the crash points that killed a process.
        restarts: how often each process ended by itself and was started again.
        verdict: what ``verify_run`` found.
        seconds: from the start of the run to its end.
    """

    status: str
    model: str
    models: tuple[str, ...]
    crashed: frozenset[str]
    restarts: Mapping[str, int]
    verdict: Verdict
    seconds: float


@dataclass(frozen=True)
class Chaos:
    """A run that goes on: its system, a bus of the test's own, and what it is called."""

    system: System
    bus: Bus
    run: str = RUN

    async def until(self, kind: type[P], *, count: int = 1) -> P:
        """The ``count``-th event of this type in the run."""
        found = 0
        async with asyncio.timeout(RUN_S), self.bus.follow(events_of(self.run)) as items:
            async for item in items:
                if isinstance(item, Stored) and isinstance(item.event.data, kind):
                    found += 1
                    if found == count:
                        return item.event.data
        raise AssertionError


Disturbance = Callable[[Chaos], Awaitable[None]]


def small(
    *,
    users: int = 6,
    images: int = 4,
    rounds: int = 2,
    quorum: float = 1.0,
    deadline: float = 120.0,
    strategy: str = "fedavg",
    seed: int = 0,
) -> RunConfig:
    """The default task, small enough to run often."""
    return make_config(
        artifacts=DEFAULT_ARTIFACTS,
        users=users,
        images=images,
        rounds=rounds,
        seed=seed,
        quorum=quorum,
        deadline=deadline,
        strategy=strategy,
    )


@contextlib.contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Sets variables that the processes started meanwhile inherit."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.asynccontextmanager
async def chaos_system(
    folder: Path, *, crash_at: Sequence[str] = (), variables: Mapping[str, str] | None = None
) -> AsyncIterator[Chaos]:
    """Broker and agents, armed with these crash points; clients are the caller's to start."""
    once = folder / "crashed"
    once.mkdir(parents=True)
    values = {
        "FEDBUS_CRASH_AT": ",".join(crash_at),
        "FEDBUS_CRASH_ONCE": str(once),
        "FEDBUS_GATEWAY_LEASE_S": str(LEASE_S),
        "FEDBUS_GATEWAY_HEARTBEAT_S": str(HEARTBEAT_S),
        # Nothing that an earlier run fetched shall spare this one a step.
        "XDG_CACHE_HOME": str(folder / "cache"),
        **(variables or {}),
    }
    with environment(values):
        async with (
            running_system(folder / "store", folder / "logs", nats_port=None, gateway_port=0) as system,
            Bus.connect(settings_of(system), name="chaos", wait_s=20) as bus,
        ):
            yield Chaos(system, bus)


def settings_of(system: System) -> BusSettings:
    """How to reach the system's broker."""
    return system.connection.settings()


async def complete(
    folder: Path,
    *,
    config: RunConfig | None = None,
    clients: ClientMix | None = None,
    crash_at: Sequence[str] = (),
    variables: Mapping[str, str] | None = None,
    disturb: Disturbance | None = None,
) -> Outcome:
    """Runs a small run to its end, with crashes and whatever ``disturb`` does meanwhile."""
    async with chaos_system(folder, crash_at=crash_at, variables=variables) as chaos:
        chaos.system.start_clients(clients or ClientMix(native=2))
        outcome = await run_to_the_end(chaos, config or small(), disturb)
        crashed = frozenset(path.name for path in (folder / "crashed").iterdir())
        restarts = chaos.system.processes.restarts
        # One that died with the run's last event is noticed a moment later.
        await wait_for(lambda: sum(restarts.values()) >= len(crashed))
        return replace(outcome, crashed=crashed, restarts=dict(restarts))


async def run_to_the_end(chaos: Chaos, config: RunConfig, disturb: Disturbance | None = None) -> Outcome:
    """Starts the run, lets ``disturb`` happen, and waits for the end of both."""
    began = time.monotonic()
    await start_run(chaos.bus, chaos.run, config, RunSources())
    await chaos.bus.publish(RoundStarted(run=chaos.run, round=1))
    async with asyncio.timeout(RUN_S), asyncio.TaskGroup() as group:
        if disturb is not None:
            group.create_task(_awaited(disturb(chaos)))
        ending = group.create_task(chaos.until(RunFinished))
    finished = ending.result()
    seconds = time.monotonic() - began
    models = [one.model.sha256 for one in await said(chaos, ModelPublished)]
    return Outcome(
        status=finished.status,
        model=finished.final_model.sha256 if finished.final_model else "",
        models=tuple(models),
        crashed=frozenset(),
        restarts=dict(chaos.system.processes.restarts),
        verdict=await verify_run(chaos.bus, chaos.run),
        seconds=seconds,
    )


async def said(chaos: Chaos, kind: type[P]) -> list[P]:
    """All events of one type in the run so far."""
    async with chaos.bus.follow(events_of(chaos.run), live=False) as items:
        return [one.event.data async for one in items if isinstance(one, Stored) and isinstance(one.event.data, kind)]


async def _awaited(work: Awaitable[None]) -> None:
    await work
