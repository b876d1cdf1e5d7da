"""Starts, watches, restarts and stops the processes that make up a running fedbus."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from agents.cli.settings import CommandSettings
from agents.runtime.tasks import background
from bus.broker.server import die_with_parent
from bus.errors import FedbusError
from bus.process.failures import raise_first

log = logging.getLogger(__name__)
STOP_GRACE_S = 8.0
MAX_QUICK_EXITS = 5
QUICK_S = 20.0
LOOK_EVERY_S = 1.0


class ProcessFailedError(FedbusError):
    """A part of fedbus keeps ending although it should run."""

    code = "process_failed"


@dataclass(frozen=True)
class Command:
    """One process: what to run, with which additions to the environment, and where its output goes."""

    name: str
    argv: Sequence[str]
    log_path: Path
    env: Mapping[str, str] = field(default_factory=dict)
    prepare: Callable[[], None] | None = None
    """Called before every start, to clean up what the process before may have left."""


class Supervisor:
    """Keeps processes alive: one that ends by itself is started again, with a growing pause.

    Raises ``ProcessFailedError`` out of ``wait_failed`` when one ended ``MAX_QUICK_EXITS`` times in a row, each within
    ``QUICK_S`` of its start.
    """

    def __init__(self, group: asyncio.TaskGroup) -> None:
        self._group = group
        self._watches: dict[str, asyncio.Task[None]] = {}
        self._running: dict[str, asyncio.subprocess.Process] = {}
        self._logs: set[Path] = set()
        self.restarts: dict[str, int] = {}

    def start(self, command: Command) -> None:
        """Starts ``command`` and keeps it running until ``stop``."""
        command.log_path.parent.mkdir(parents=True, exist_ok=True)
        self._logs.add(command.log_path)
        self._watches[command.name] = self._group.create_task(self._watch(command))

    async def stop(self, name: str) -> None:
        """Ends one process: SIGTERM to its group, SIGKILL after ``STOP_GRACE_S``."""
        if (watch := self._watches.pop(name, None)) is not None:
            watch.cancel()
            # A failure of the watch itself is the task group's to report.
            await asyncio.wait([watch])

    async def stop_all(self) -> None:
        """Ends all processes at once."""
        await asyncio.gather(*(self.stop(name) for name in list(self._watches)))

    def pids(self) -> dict[str, int]:
        """Process ids by name, of those that run now."""
        return {name: process.pid for name, process in self._running.items()}

    async def keep_logs_short(self, most: int) -> None:
        """Moves what a log has to another file, ``.1``, whenever that is more than ``most`` bytes; endless."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            for path in list(self._logs):
                with contextlib.suppress(OSError):
                    if path.stat().st_size > most:
                        await asyncio.to_thread(_rotate, path)

    async def _watch(self, command: Command) -> None:
        quick = 0
        while True:
            began = time.monotonic()
            code = await self._run_once(command)
            quick = quick + 1 if time.monotonic() - began < QUICK_S else 1
            self.restarts[command.name] = self.restarts.get(command.name, 0) + 1
            if quick >= MAX_QUICK_EXITS:
                raise ProcessFailedError(
                    f"{command.name} ended {quick} times in a row, the last time with code {code}: "
                    f"{_last_line(command.log_path)}",
                    hint=f"its whole output is in {command.log_path}",
                )
            log.warning("%s ended with code %s and is started again", command.name, code)
            await asyncio.sleep(min(5.0, 0.25 * 2**quick))

    async def _run_once(self, command: Command) -> int:
        if command.prepare is not None:
            command.prepare()
        with command.log_path.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                *command.argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **command.env},
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        self._running[command.name] = process
        try:
            return await process.wait()
        finally:
            await _end(command.name, process)
            self._running.pop(command.name, None)


@contextlib.asynccontextmanager
async def supervisor() -> AsyncIterator[Supervisor]:
    """A supervisor whose processes are stopped at the end of the block; their failure ends the block."""
    try:
        async with asyncio.TaskGroup() as group:
            one = Supervisor(group)
            async with background(one.keep_logs_short(CommandSettings().log_bytes)):
                try:
                    yield one
                finally:
                    await one.stop_all()
    except BaseExceptionGroup as failures:
        raise_first(failures)


def _rotate(path: Path) -> None:
    """Moves the content and not the file, because its processes hold that open; they write at its end, wherever it is.

    A line that is written between the last look and the cut is lost.
    """
    with path.open("rb") as log_file, path.with_name(f"{path.name}.1").open("wb") as older:
        shutil.copyfileobj(log_file, older)
    os.truncate(path, 0)


async def _end(name: str, process: asyncio.subprocess.Process) -> None:
    """Ends a process and what it started; does nothing when it has ended."""
    if process.returncode is not None:
        _signal_group(process.pid, signal.SIGKILL)
        return
    _signal_group(process.pid, signal.SIGTERM)
    try:
        async with asyncio.timeout(STOP_GRACE_S):
            await process.wait()
    except TimeoutError:
        log.warning("%s did not stop in %g s and is killed", name, STOP_GRACE_S)
    _signal_group(process.pid, signal.SIGKILL)
    await process.wait()


def _signal_group(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def _last_line(path: Path) -> str:
    with contextlib.suppress(OSError):
        lines = path.read_text(errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else "it said nothing"
    return "it said nothing"
