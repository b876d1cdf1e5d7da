"""The wheel, installed in a fresh environment outside of any checkout, does what the checkout does."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import httpx
import pytest

from tests.conftest import wait_for

ROOT = Path(__file__).parents[2]
SMALL = ("--users", "3", "--images", "2", "--rounds", "1")


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the programs of an environment that holds the wheel, and beside it what the wheel depends on."""
    folder = tmp_path_factory.mktemp("wheel")
    programs = folder / "venv" / "bin"
    venv.create(folder / "venv", with_pip=False)
    _pip(programs, "wheel", "--no-deps", "--no-build-isolation", "-w", folder, ROOT)
    (wheel,) = folder.glob("*.whl")
    _pip(programs, "--python", programs / "python", "install", "--no-index", "--no-deps", wheel)
    # A path in such a file is searched after what is installed; what makes this checkout importable there is not run.
    site = next(folder.glob("venv/lib/python3*/site-packages"))
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return programs


def _pip(programs: Path, *words: str | Path) -> None:
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", *words)
    done = subprocess.run(pip, cwd=programs, env=environ(programs), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder to work in, with files whose names are those of fedbus's own packages."""
    for name in ("agents", "artifacts", "bus", "data"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('a file of the user')\n")
    return tmp_path


def environ(programs: Path) -> dict[str, str]:
    """What processes of the fresh environment see: nothing of this checkout, but its nats-server."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "FEDBUS", "NATS"))}
    return {**kept, "PATH": f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}"}


def fedbus(programs: Path, folder: Path, *words: str) -> str:
    """What a command says; it has to succeed."""
    done = subprocess.run(
        [programs / "fedbus", *words], cwd=folder, env=environ(programs), capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_public_door_is_the_installed_one(environment: Path, folder: Path) -> None:
    code = "import fedbus, sys; print(fedbus.__file__, fedbus.__version__, fedbus.replay(sys.argv[1]).differences)"
    recording = ROOT / "tests" / "replay" / "small_run.jsonl.gz"
    said = subprocess.run(
        [environment / "python", "-P", "-c", code, recording],
        cwd=folder,
        env=environ(environment),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout.split()
    assert said[0].startswith(str(environment.parent))
    assert said[1:] == ["0.1.0", "[]"]


def test_an_installed_demo_trains_reports_and_replays(environment: Path, folder: Path) -> None:
    fedbus(environment, folder, "demo", "--clients", "native:2", *SMALL, "--out", "out")
    report = json.loads((folder / "out" / "report.json").read_text())
    assert report["status"] == "completed"
    models = ("--model", "out/inference.onnx", "--model", "out/inference.onnx")
    sample = environment.parent.glob("lib/python3*/site-packages/data/fashion_mnist/held_out")
    assert "2000 images" in fedbus(environment, folder, "evaluate", *models, "--data", str(next(sample)))
    assert "the same bits" in fedbus(environment, folder, "replay", "out/recording.jsonl.gz")


async def test_an_installed_fedbus_serves_its_page(environment: Path, folder: Path) -> None:
    up = await asyncio.create_subprocess_exec(
        environment / "fedbus",
        *("up", "--port", "0", "--nats-port", "0"),
        cwd=folder,
        env=environ(environment),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        said = folder / ".fedbus" / "gateway.url"
        url = await wait_for(lambda: said.exists() and said.read_text().strip(), within_s=60)
        async with httpx.AsyncClient(timeout=10) as client:
            page = await client.get(f"{url}/")
        assert page.status_code == 200
        assert '<script type="module"' in page.text
    finally:
        up.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(up.wait(), 30) == 0
