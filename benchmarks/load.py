"""Many clients at once: real broker, agents and gateway, synthetic clients, and the ledger checked at the end.

``python -m benchmarks.load --clients 500 --minutes 10`` runs one run after the other until the time is over;
``--users 10000 --minutes 0`` ends after one run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from agents.audit.verify import verify_runs
from agents.cli.options import make_config
from agents.cli.run_setup import user_name
from agents.cli.system import System, running_system
from agents.client.address import Address
from agents.client.objects import ObjectCache
from agents.client.runner import Client
from agents.client.trainer import Finished, Progress, SyntheticTrainer
from agents.runtime.shipped import DEFAULT_ARTIFACTS, DEFAULT_HELD_OUT_DATA, DEFAULT_USERS_DATA
from agents.words.events import RoundStarted, RunFinished, RunStarted, TaskAssigned, UpdateSubmitted
from agents.words.run_config import RunConfig, RunDataset, UserShard
from artifacts.manifest import load_manifest
from benchmarks.common import report
from bus.client import Bus
from bus.words.envelope import Stored
from bus.words.subjects import events_of
from data.dataset import load_dataset
from data.shards import encode_shard

RUN_S = 1_800.0
SAMPLE_S = 1.0
GROWTH, SPARE_MB = 1.25, 32.0
"""What counts as flat, from a quarter of the time to its end: caches fill, and the allocator keeps a little."""
IMAGES = 4


@dataclass
class Samples:
    """Memory of the processes over time, in MB, and when each task reached its client."""

    memory: dict[str, list[float]] = field(default_factory=dict)
    begun: dict[tuple[str, int, str], datetime] = field(default_factory=dict)


class TimedTrainer(SyntheticTrainer):
    """Notes when a task begins."""

    def __init__(self, objects: ObjectCache, samples: Samples) -> None:
        super().__init__(objects)
        self._samples = samples

    async def run(self, task: TaskAssigned, progress: Progress) -> Finished:
        """Answers at once."""
        self._samples.begun[task.run, task.round, task.user] = datetime.now(UTC)
        return await super().run(task, progress)


async def start_shared_run(bus: Bus, run: str, config: RunConfig) -> None:
    """A run whose users all own the same few images, so that there may be any number of them."""
    manifest = load_manifest(DEFAULT_ARTIFACTS)
    users, held_out = load_dataset(DEFAULT_USERS_DATA), load_dataset(DEFAULT_HELD_OUT_DATA)
    shard = await bus.objects.put(encode_shard(users.images[:IMAGES]))
    names = [user_name(index, config.users) for index in range(config.users)]
    truth = {name: users.labels[:IMAGES].tolist() for name in names}
    dataset = RunDataset(
        classes=tuple(users.classes),
        users=tuple(UserShard(user=name, shard=shard) for name in names),
        held_out=await bus.objects.put(encode_shard(held_out.images[:200], held_out.labels[:200])),
        truth=await bus.objects.put(json.dumps(truth).encode()),
    )
    for _, file in manifest.files.items():
        await bus.objects.put_file(DEFAULT_ARTIFACTS / file.path, file.media_type)
    await bus.publish(
        RunStarted(
            run=run,
            config=config,
            config_digest="0" * 64,
            dataset=await bus.objects.put(dataset.model_dump_json().encode()),
            artifacts=await bus.objects.put(manifest.model_dump_json().encode()),
            base_model=manifest.files["trainable"].ref,
            users=config.users,
        )
    )
    await bus.publish(RoundStarted(run=run, round=1))


async def finished_run(bus: Bus, run: str, samples: Samples) -> list[float]:
    """Waits for the run's end; seconds of each task from its client's hands to the stream."""
    latencies = []
    async with asyncio.timeout(RUN_S), bus.follow(events_of(run)) as items:
        async for item in items:
            data = item.event.data if isinstance(item, Stored) else None
            if isinstance(item, Stored) and isinstance(data, UpdateSubmitted):
                began = samples.begun.pop((data.run, data.round, data.user))
                latencies.append((item.time - began).total_seconds())
            elif isinstance(data, RunFinished):
                if data.status != "completed":
                    raise RuntimeError(f"{run} {data.status}: {data.reason}")
                return latencies
    raise AssertionError("a live subscription has no end")


async def sample_memory(system: System, samples: Samples) -> None:
    """Reads every agent's resident memory once a second, for ever."""
    while True:
        for name, pid in system.processes.pids().items():
            pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
            samples.memory.setdefault(name, []).append(pages * 4096 / 1e6)
        await asyncio.sleep(SAMPLE_S)


async def load(clients: int, users: int, rounds: int, minutes: float) -> dict[str, float | int]:
    """Runs the load and returns its figures.

    Raises:
        RuntimeError: a run did not complete, its ledger does not hold, or the memory of an agent grew.
    """
    samples, latencies, runs, updates = Samples(), list[float](), 0, 0
    with tempfile.TemporaryDirectory(prefix="fedbus-load-", ignore_cleanup_errors=True) as folder:
        store = Path(folder)
        async with running_system(store, store / "logs", nats_port=None, gateway_port=0) as system:
            connection = system.connection
            objects = ObjectCache(Address(connection.gateway_url, connection.join_token), store / "cache")
            trainer = TimedTrainer(objects, samples)
            async with Bus.connect(connection.settings(), name="load", wait_s=10) as bus, asyncio.TaskGroup() as group:
                background = [group.create_task(sample_memory(system, samples))]
                for index in range(clients):
                    client = Client(Address(connection.gateway_url, connection.join_token), f"load-{index}", trainer)
                    background.append(group.create_task(client.run()))
                began = time.monotonic()
                while runs == 0 or time.monotonic() - began < 60 * minutes:
                    runs += 1
                    run = f"load-{runs}"
                    config = make_config(
                        artifacts=DEFAULT_ARTIFACTS,
                        users=users,
                        images=IMAGES,
                        rounds=rounds,
                        seed=runs,
                        quorum=1.0,
                        label_noise=0.0,
                        deadline=RUN_S,
                    )
                    await start_shared_run(bus, run, config)
                    latencies += await finished_run(bus, run, samples)
                seconds = time.monotonic() - began
                print(f"{runs} runs in {seconds:.0f} s; checking their ledgers", flush=True)
                for run, verdict in (await verify_runs(bus, [f"load-{n}" for n in range(1, runs + 1)])).items():
                    updates += verdict.updates
                    if verdict.problems:
                        raise RuntimeError(f"{run}: {len(verdict.problems)} problems: {verdict.problems[0]}")
                for task in background:
                    task.cancel()
            await objects.close()
    p50, p95, p99 = np.percentile(latencies, [50, 95, 99])
    figures: dict[str, float | int] = {
        "clients": clients, "users": users, "runs": runs, "updates": updates, "seconds": seconds,
        "updates_per_second": len(latencies) / seconds,
        "latency_p50_s": float(p50), "latency_p95_s": float(p95), "latency_p99_s": float(p99),
    }  # fmt: skip
    for name, values in samples.memory.items():
        quarter, end = values[len(values) // 4], values[-1]
        figures[f"{name}_mb_quarter"], figures[f"{name}_mb_end"] = quarter, end
        if minutes and end > GROWTH * quarter + SPARE_MB:
            raise RuntimeError(f"the memory of {name} grew from {quarter:.0f} MB to {end:.0f} MB")
    return figures


def main() -> None:
    """Prints the table and writes the JSON; exits with 1 when anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=500)
    parser.add_argument("--users", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=10)
    arguments = parser.parse_args()
    found = asyncio.run(load(arguments.clients, arguments.users, arguments.rounds, arguments.minutes))
    report(
        f"load_{arguments.users}",
        ours=found.pop("updates_per_second"),
        reference=0,
        unit="updates a second",
        goal="nothing lost (the ledger of every run holds), memory flat",
        **found,
    )


if __name__ == "__main__":
    main()
