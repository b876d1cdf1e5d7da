"""The commands of the README work as they stand there, one after the other, in one folder."""

from __future__ import annotations

import re
import shlex
import sys

import pytest

from tests.commands.conftest import ROOT, Shell

README = (ROOT / "README.md").read_text()
SMALL = ("--users", "3", "--images", "2")
STEP = re.compile(r"```(sh|python)\n(.*?)```", re.DOTALL)
FIRST = "fedbus run start"


def steps() -> list[str | list[str]]:
    """From the first run on: a list of words is a command of fedbus, a text a program in Python."""
    found: list[str | list[str]] = []
    for kind, text in STEP.findall(README[README.index(FIRST) - len("```sh\n") :]):
        if kind == "python":
            found.append(text)
        else:
            found += [shlex.split(line, comments=True)[1:] for line in text.splitlines() if line.startswith("fedbus ")]
    return found


@pytest.mark.timeout(300)
async def test_the_readmes_commands_work_in_order(shell: Shell) -> None:
    await (await shell.start("up", "--port", "0", "--nats-port", "0", "--clients", "native:1")).says("Stop with Ctrl-C")
    exported = re.findall(r"export (\w+)=(.*)", await shell.run("env"))
    login = {name: shlex.split(value)[0] for name, value in exported}
    done = []
    for step in steps():
        if isinstance(step, list):
            done.append(" ".join(step[:2]))
            await shell.run(*step, *(SMALL if step[:2] == ["run", "start"] else ()))
        elif "asyncio.Event" in step:
            listening = await shell.start_program(sys.executable, "-c", step, **login)
            await shell.run("run", "show", "bazaar")
            assert listening.process.returncode is None
        elif "import fedbus" in step:
            call = step + "\ntest_old_runs_still_replay()\n"
            replayed = await shell.start_program(sys.executable, "-c", call, **login)
            assert await replayed.ended(within_s=60) == 0, replayed.said
        else:
            started = await shell.start_program(sys.executable, "-c", step, **login)
            assert await started.ended() == 0, started.said
            assert "completed" in await shell.run("watch", "bazaar")
    assert done[:4] == ["run start", "round start", "watch shop", "report shop"]
    assert {"model export", "verify shop", "record shop", "replay shop.jsonl.gz"} <= set(done)
    assert done.count("run start") == 2
