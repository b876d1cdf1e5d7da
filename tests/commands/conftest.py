"""The ``fedbus`` command as a person runs it: processes of their own, in a folder of their own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import wait_for

ROOT = Path(__file__).parents[2]


@dataclass
class Running:
    """A command that runs, and all that it has said so far."""

    process: asyncio.subprocess.Process
    log: Path

    @property
    def said(self) -> str:
        return self.log.read_text()

    async def says(self, text: str, *, within_s: float = 60.0) -> None:
        """Waits for a text; a command that ends without it fails the test at once."""

        def there() -> bool:
            ended = self.process.returncode is not None
            if text in self.said:
                return True
            assert not ended, f"ended with {self.process.returncode} without saying {text!r}:\n{self.said}"
            return False

        try:
            await wait_for(there, within_s=within_s)
        except TimeoutError:
            pytest.fail(f"did not say {text!r}:\n{self.said}")

    async def stop(self) -> int:
        """SIGTERM; the exit code."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)
        return await self.ended()

    async def ended(self, *, within_s: float = 30.0) -> int:
        return await asyncio.wait_for(self.process.wait(), within_s)


class Shell:
    """Runs commands in one folder; what still runs when the test ends is killed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._running: list[Running] = []
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("FEDBUS_", "NATS_"))}
        self.environment = {**kept, "PYTHONPATH": str(ROOT), "COLUMNS": "60", "PYTHONUNBUFFERED": "1"}

    async def start(self, *words: str, **environment: str) -> Running:
        """Starts ``fedbus WORDS``."""
        return await self.start_program(sys.executable, "-m", "agents.cli", *words, **environment)

    async def start_program(self, *words: str, **environment: str) -> Running:
        log = self.folder / f"said-{len(self._running)}.txt"
        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                *words,
                cwd=self.folder,
                env={**self.environment, **environment},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self._running.append(Running(process, log))
        return self._running[-1]

    async def run(self, *words: str, code: int = 0, **environment: str) -> str:
        """What ``fedbus WORDS`` says until it ends, which has to be with this exit code."""
        running = await self.start(*words, **environment)
        assert await running.ended(within_s=90) == code, running.said
        return running.said

    async def close(self) -> None:
        for one in self._running:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(one.process.pid, signal.SIGTERM)
        for one in self._running:
            with contextlib.suppress(TimeoutError):
                await one.ended(within_s=10)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(one.process.pid, signal.SIGKILL)
            await one.process.wait()


@pytest.fixture
async def shell(tmp_path: Path) -> AsyncIterator[Shell]:
    one = Shell(tmp_path)
    try:
        yield one
    finally:
        await one.close()


@pytest.fixture
def usual_ports() -> None:
    """Nothing listens where fedbus looks first: somebody's own fedbus on this machine would answer a test's."""
    for port in (4222, 8700):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                pytest.skip(f"something listens on port {port}; stop it, and this test can run")
