"""Runs of the default task for the benchmarks: whole systems with their own broker, and the plain loop beside them."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from agents.cli.client_mix import ClientMix
from agents.cli.inspect_run import events_so_far
from agents.cli.options import make_config
from agents.cli.run_setup import RunSources, start_run
from agents.cli.system import client_commands, running_system
from agents.runtime.shipped import DEFAULT_ARTIFACTS
from agents.words.events import RoundStarted, RunFinished
from bus.client import Bus
from bus.words.envelope import Stored
from bus.words.subjects import events_of

RUN_S = 900.0


def demo_report(clients: str, *, rounds: int, users: int = 100, extra: tuple[str, ...] = ()) -> dict[str, Any]:
    """``report.json`` of one ``fedbus demo``, run as a process of its own.

    Raises:
        RuntimeError: the demo failed; its output is in the message.
    """
    with tempfile.TemporaryDirectory(prefix="fedbus-bench-") as out:
        argv = [sys.executable, "-m", "agents.cli", "demo", "--clients", clients, "--rounds", str(rounds)]
        argv += ["--users", str(users), "--out", out, *extra]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=RUN_S, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(argv)} failed:\n{done.stdout}\n{done.stderr}")
        found: dict[str, Any] = json.loads((Path(out) / "report.json").read_text())
        return found


def torch_seconds(rounds: int) -> float:
    """Median seconds of a round of the plain torch loop, in one process on one thread."""
    argv = [sys.executable, "-m", "benchmarks.torch_loop", "--rounds", str(rounds), "--json"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=RUN_S, check=True)
    return median(float(one["seconds"]) for one in json.loads(done.stdout)["rounds"] if one["round"])


async def synthetic_run(clients: int, *, rounds: int, users: int) -> list[Stored]:
    """All events of a run whose native clients train nothing and answer at once."""
    with tempfile.TemporaryDirectory(prefix="fedbus-bench-", ignore_cleanup_errors=True) as folder:
        store = Path(folder)
        async with running_system(store, store / "logs", nats_port=None, gateway_port=0) as system:
            mix = ClientMix(native=clients)
            for command in client_commands(mix, system.connection, store=store, logs=store / "logs", synthetic=True):
                system.processes.start(command)
            settings = system.connection.settings()
            async with Bus.connect(settings, name="bench", wait_s=10) as bus:
                config = make_config(
                    artifacts=DEFAULT_ARTIFACTS, users=users, images=20, rounds=rounds, seed=0, quorum=1.0
                )
                await start_run(bus, "bench", config, RunSources())
                await bus.publish(RoundStarted(run="bench", round=1))
                async with asyncio.timeout(RUN_S), bus.follow(events_of("bench")) as items:
                    async for item in items:
                        if isinstance(item, Stored) and isinstance(item.event.data, RunFinished):
                            break
                return list(await events_so_far(bus, "bench"))
