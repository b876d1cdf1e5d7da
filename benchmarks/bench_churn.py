"""Time to quorum when clients come and go, with a mean life from twice a task down to half of one."""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import tempfile
from datetime import datetime
from pathlib import Path

import httpx

from agents.cli.options import make_config
from agents.cli.run_setup import RunSources, start_run
from agents.cli.system import System, running_system
from agents.client.address import Address
from agents.client.objects import ObjectCache
from agents.client.runner import Client
from agents.client.trainer import Finished, Progress, SyntheticTrainer
from agents.runtime.shipped import DEFAULT_ARTIFACTS
from agents.runtime.tasks import background
from agents.words.events import RoundClosed, RoundStarted, TaskAssigned
from benchmarks.common import Value, report
from bus.client import Bus
from bus.words.envelope import Stored
from bus.words.subjects import events_of

LIVES = (None, 2.0, 1.0, 0.75, 0.5)
"""Mean lives of a client, in tasks; none lives for ever."""
ROUND_S = 300.0


class SlowTrainer(SyntheticTrainer):
    """Trains nothing for ``task_s`` seconds."""

    def __init__(self, objects: ObjectCache, task_s: float) -> None:
        super().__init__(objects)
        self._task_s = task_s

    async def run(self, task: TaskAssigned, progress: Progress) -> Finished:
        """Answers after the time of a task."""
        await asyncio.sleep(self._task_s)
        return await super().run(task, progress)


async def crowd(system: System, cache: Path, *, run: str, size: int, task_s: float, life: float | None) -> None:
    """Keeps ``size`` clients there; each that has lived its time goes without a word, and a new one comes."""
    lives = random.Random(f"{run} of seed 0")

    async def place(number: int) -> None:
        generation = 0
        while True:
            generation += 1
            gateway = Address(system.connection.gateway_url, system.connection.join_token)
            objects = ObjectCache(gateway, cache)
            name = f"{run}-{number}-{generation}"
            trainer = SlowTrainer(objects, task_s)
            client = Client(gateway, name, trainer, says_goodbye=False)
            try:
                async with background(client.run()):
                    await asyncio.sleep(ROUND_S if life is None else lives.expovariate(1 / (life * task_s)))
            finally:
                await objects.close()

    async with asyncio.TaskGroup() as group:
        for number in range(size):
            group.create_task(place(number))


async def seconds_to_quorum(bus: Bus, run: str) -> float:
    """From the first assigned task to the closed round."""
    began: datetime | None = None
    async with asyncio.timeout(ROUND_S), bus.follow(events_of(run)) as items:
        async for item in items:
            if not isinstance(item, Stored):
                continue
            if began is None and isinstance(item.event.data, TaskAssigned):
                began = item.time
            if began is not None and isinstance(item.event.data, RoundClosed):
                return (item.time - began).total_seconds()
    raise RuntimeError("the stream ended")


async def granted(system: System) -> float:
    """Tasks that the gateway has handed out so far."""
    gateway = Address(system.connection.gateway_url, system.connection.join_token)
    async with httpx.AsyncClient() as client:
        lines = (await client.get(f"{gateway.url}/metrics", headers=gateway.headers)).text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("fedbus_gateway_granted_total"))


async def measure(arguments: argparse.Namespace) -> list[tuple[float, float]]:
    """For each of ``LIVES``: seconds to the quorum, and tasks handed out for each update that was needed."""
    found = []
    os.environ["FEDBUS_GATEWAY_LEASE_S"] = str(arguments.lease)
    with tempfile.TemporaryDirectory(prefix="fedbus-bench-", ignore_cleanup_errors=True) as folder:
        store = Path(folder)
        async with (
            running_system(store, store / "logs", nats_port=None, gateway_port=0) as system,
            Bus.connect(system.connection.settings(), name="bench", wait_s=10) as bus,
        ):
            for index, life in enumerate(LIVES):
                run, before = f"churn-{index}", await granted(system)
                config = make_config(
                    artifacts=DEFAULT_ARTIFACTS,
                    users=arguments.users,
                    images=2,
                    rounds=1,
                    seed=0,
                    quorum=arguments.quorum,
                )
                await start_run(bus, run, config, RunSources())
                coming = crowd(
                    system, store / "cache", run=run, size=arguments.clients, task_s=arguments.task, life=life
                )
                async with background(coming):
                    await bus.publish(RoundStarted(run=run, round=1))
                    seconds = await seconds_to_quorum(bus, run)
                    needed = arguments.quorum * arguments.users
                    found.append((seconds, (await granted(system) - before) / needed))
    return found


def main() -> None:
    """Prints the table and writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, default=40)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--task", type=float, default=1.0, help="seconds that a task takes")
    parser.add_argument("--lease", type=float, default=0.5, help="seconds that a lost client's task waits for it")
    parser.add_argument("--quorum", type=float, default=0.8)
    arguments = parser.parse_args()
    found = asyncio.run(measure(arguments))
    extra: dict[str, Value] = {}
    for life, (seconds, handed_out) in zip(LIVES, found, strict=True):
        name = "for ever" if life is None else f"{life:.2g} tasks"
        extra[f"seconds to quorum when a client lives {name}"] = seconds
        extra[f"tasks handed out for each update when it lives {name}"] = handed_out
    report(
        "churn",
        ours=found[-1][0],
        reference=found[0][0],
        unit="seconds to the quorum when a client lives half a task on average; reference: for ever",
        goal="an end at every churn",
        **vars(arguments),
        **extra,
    )


if __name__ == "__main__":
    main()
