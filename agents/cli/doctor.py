"""``fedbus doctor``: what this machine lacks, and how to get it."""

from __future__ import annotations

import importlib
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import typer
from rich.text import Text

from agents.cli.chromium import find_chromium
from agents.cli.console import console
from agents.cli.demo import check_page
from agents.runtime.shipped import DEFAULT_ARTIFACTS, DEFAULT_HELD_OUT_DATA, DEFAULT_USERS_DATA
from artifacts.manifest import load_manifest
from bus.broker.server import find_nats_server
from bus.errors import FedbusError
from data.dataset import load_dataset

VERSION_S = 10
PORTS = {"page": 8700, "broker": 4222}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; ``needed`` tells whether the default demo cannot do without it."""

    what: str
    good: bool
    found: str
    advice: str = ""
    needed: bool = True


def doctor() -> None:
    """Check this machine: what is missing, what it is needed for, and how to get it."""
    findings = list(examine())
    for one in findings:
        for line in lines_about(one):
            # A path stays in one piece, to be copied, however narrow the terminal.
            console.print(line, soft_wrap=True)
    if any(one.needed and not one.good for one in findings):
        raise typer.Exit(1)
    console.print("Everything that fedbus demo needs is here.")


def lines_about(finding: Finding) -> Iterator[Text]:
    """What was found, and what to do about it where it is not good."""
    mark, style = ("ok", "green") if finding.good else ("missing", "red") if finding.needed else ("absent", "yellow")
    # Programs begin what they say of their version with their name.
    found = finding.found.removeprefix(finding.what).lstrip(": ")
    yield Text.assemble((f"{mark:<9}", style), f"{finding.what}: {found}")
    if not finding.good and finding.advice:
        yield Text(f"{'':9}{finding.advice}")


def examine() -> Iterator[Finding]:
    """All findings on this machine, in the order in which a newcomer needs them."""
    version = ".".join(map(str, sys.version_info[:3]))
    yield Finding("Python 3.11", sys.version_info[:2] == (3, 11), version, "apt-get install -y python3.11")
    yield _imported("onnxruntime.capi._pybind_state", "training natively", "make setup (onnxruntime-training-cpu)")
    yield _tried("nats-server", lambda: _version_of(find_nats_server()))
    page = _tried("built page", check_page)
    yield _node(needed=not page.good)
    yield _tried("Chromium", lambda: _version_of(str(find_chromium())))
    yield page
    yield _tried("default artifacts", lambda: load_manifest(DEFAULT_ARTIFACTS).name)
    yield _tried("default images", lambda: str(len(load_dataset(DEFAULT_USERS_DATA).images)))
    yield _tried("held-out images", lambda: str(len(load_dataset(DEFAULT_HELD_OUT_DATA).images)))
    yield _imported("torch", "building artifacts for other models", "pip install 'fedbus[export]'", needed=False)
    for name, port in PORTS.items():
        yield _port(name, port)


def _tried(what: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(what, True, look())
    except FedbusError as error:
        return Finding(what, False, error.message, error.hint)


def _imported(module: str, purpose: str, advice: str, *, needed: bool = True) -> Finding:
    what = f"{module.split('.')[0]} ({purpose})"
    try:
        importlib.import_module(module)
    except ImportError as error:
        return Finding(what, False, str(error), advice, needed)
    return Finding(what, True, getattr(sys.modules[module.split(".")[0]], "__version__", "importable"), needed=needed)


def _node(*, needed: bool) -> Finding:
    node = shutil.which("node")
    advice = "install Node 20 or later (apt install nodejs npm); only building the page needs it"
    if node is None:
        return Finding("Node 20", False, "no node on PATH", advice, needed)
    version = _version_of(node)
    major = version.lstrip("v").split(".")[0]
    return Finding("Node 20", major.isdigit() and int(major) >= 20, version, advice, needed)


def _version_of(program: str) -> str:
    try:
        answer = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=VERSION_S, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise FedbusError(f"{program} does not run: {error}", hint=f"install {program} again") from None
    lines = answer.stdout.strip().splitlines()
    return lines[-1] if lines else program


def _port(name: str, port: int) -> Finding:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            option = "--port" if name == "page" else "--nats-port"
            return Finding(
                f"port {port} ({name})", False, "in use", f"fedbus up {option} N chooses another", needed=False
            )
    return Finding(f"port {port} ({name})", True, "free")
