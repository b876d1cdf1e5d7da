"""The supervisor keeps processes running, gives up with a reason, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from agents.cli import processes
from agents.cli.here import AGENTS
from agents.cli.processes import Command, ProcessFailedError, supervisor
from agents.cli.reload import agents_to_restart
from agents.runtime.shipped import PACKAGES
from tests.conftest import wait_for


def python(code: str, folder: Path, name: str = "child", **env: str) -> Command:
    return Command(name, (sys.executable, "-c", code), folder / f"{name}.log", env)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A zombie still has a process id.
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"


async def test_a_killed_process_is_started_again(tmp_path: Path) -> None:
    async with supervisor() as running:
        running.start(python("import time; time.sleep(60)", tmp_path))
        first = await wait_for(lambda: running.pids().get("child"))
        os.kill(first, signal.SIGKILL)
        second = await wait_for(lambda: running.pids().get("child") not in (None, first) and running.pids()["child"])
        assert second != first
        assert running.restarts == {"child": 1}
    assert not is_alive(second)


async def test_what_a_process_started_ends_with_it(tmp_path: Path) -> None:
    inner = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"
    log = tmp_path / "child.log"
    async with supervisor() as running:
        running.start(python(code, tmp_path))
        grandchild = int(await wait_for(lambda: log.exists() and log.read_text().strip()))
        assert is_alive(grandchild)
    await wait_for(lambda: not is_alive(grandchild))


async def test_a_process_that_ignores_sigterm_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "STOP_GRACE_S", 0.2)
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('on', flush=True); time.sleep(60)"
    async with supervisor() as running:
        running.start(python(code, tmp_path))
        await wait_for(lambda: (tmp_path / "child.log").exists() and (tmp_path / "child.log").read_text())
        pid = running.pids()["child"]
    assert not is_alive(pid)


async def test_a_process_that_keeps_ending_fails_with_its_last_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "MAX_QUICK_EXITS", 2)

    async def run() -> None:
        async with supervisor() as running, asyncio.timeout(30):
            running.start(python("import sys; sys.exit('no such luck')", tmp_path))
            await asyncio.Event().wait()

    with pytest.raises(ProcessFailedError, match="no such luck"):
        await run()


async def test_a_process_gets_its_environment(tmp_path: Path) -> None:
    async with supervisor() as running:
        running.start(python("import os, time; print(os.environ['X'], flush=True); time.sleep(60)", tmp_path, X="7"))
        said = await wait_for(lambda: (tmp_path / "child.log").exists() and (tmp_path / "child.log").read_text())
    assert said == "7\n"


@pytest.mark.parametrize(
    ("changed", "restarted"),
    [
        ("agents/gateway/app.py", ["gateway"]),
        ("agents/dispatcher/service.py", ["dispatcher"]),
        ("agents/core/rounds/state.py", sorted(AGENTS)),
        ("bus/client.py", sorted(AGENTS)),
        ("agents/cli/main.py", []),
        ("agents/client/engine.py", []),
        ("bus/notes.txt", []),
    ],
)
def test_a_saved_file_restarts_the_agents_that_it_belongs_to(changed: str, restarted: list[str]) -> None:
    assert agents_to_restart([PACKAGES / changed]) == restarted


TALKER = """
import sys
number = 0
while sys.stdin is not None:
    print(f"{number:09d}", "x" * 80, flush=True)
    number += 1
"""


async def test_a_log_that_becomes_too_long_is_set_aside_while_its_process_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = 1 << 16
    monkeypatch.setenv("FEDBUS_LOG_BYTES", str(most))
    monkeypatch.setattr("agents.cli.processes.LOOK_EVERY_S", 0.01)
    log, older = tmp_path / "talker.log", tmp_path / "talker.log.1"
    async with supervisor() as processes:
        processes.start(Command("talker", [sys.executable, "-c", TALKER], log))

        def rotated() -> bool:
            # What stands in the file then begins with a later line and without a hole.
            begin = log.read_bytes()[:9] if older.exists() else b""
            return begin.isdigit() and int(begin) > 2 * most // 90

        await wait_for(rotated)
        assert older.stat().st_size > most
        assert sorted(path.name for path in tmp_path.iterdir()) == ["talker.log", "talker.log.1"]


async def test_a_log_of_just_the_length_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDBUS_LOG_BYTES", "4096")
    monkeypatch.setattr("agents.cli.processes.LOOK_EVERY_S", 0.01)
    just, longer = tmp_path / "just.log", tmp_path / "longer.log"
    just.write_bytes(bytes(4_096))
    async with supervisor() as running:
        for log in (just, longer):
            running.start(Command(log.stem, ["sleep", "600"], log))
        for _ in range(2):
            longer.write_bytes(bytes(4_097))
            # By the second time the other one was looked at as well.
            await wait_for(lambda: longer.stat().st_size == 0)
    assert just.stat().st_size == 4_096
    assert not just.with_name("just.log.1").exists()
