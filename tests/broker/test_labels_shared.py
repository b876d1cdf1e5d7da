"""What was paid for is asked once, whoever asks: ``labels run``, ``demo`` and ``up`` share one cache and one file."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agents.cli.system import running_system
from agents.words.events import ImagesLabelled
from bus.recording.files import load_recording
from data.dataset import DatasetManifest, ImageEntry, load_dataset, write_dataset
from data.fashion_mnist import USERS
from tests.unit.agents.labeller.label_server import LabelServer, label_server

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def server() -> Iterator[LabelServer]:
    with label_server(*load_dataset(USERS).classes) as running:
        yield running


@pytest.fixture
def few(tmp_path: Path) -> Path:
    """Eight pictures of the sample."""
    sample = load_dataset(USERS)
    facts = DatasetManifest.model_validate({**sample.manifest.model_dump(), "images": (), "parts": ()})
    entries = [ImageEntry.model_validate(one.model_dump()) for one in sample.manifest.images[:8]]
    write_dataset(tmp_path / "few", facts, entries, sample.images[:8])
    return tmp_path / "few"


def test_a_demo_asks_nothing_that_labels_run_has_paid_for_and_uses_its_file(
    server: LabelServer, few: Path, tmp_path: Path
) -> None:
    # The default place of the cache, for somebody whose home is here.
    env = {"OPENAI_API_KEY": "key", "OPENAI_BASE_URL": server.url, "XDG_CACHE_HOME": str(tmp_path / "cache")}

    def fedbus(*arguments: object, **more: str) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "agents.cli", *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=150,
            check=False,
            cwd=tmp_path,
            env={**os.environ, **env, **more},
        )
        assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}"

    def labels_of_a_demo(out: Path, *arguments: str, **more: str) -> dict[str, tuple[int | None, ...]]:
        sizes = ["--users", 2, "--images", 4, "--rounds", 1, "--clients", "native:1"]
        fedbus("demo", *sizes, "--data", few, "--out", out, *arguments, **more)
        said = [stored.event.data for stored in load_recording(out / "recording.jsonl.gz").events]
        return {data.user: data.labels for data in said if isinstance(data, ImagesLabelled)}

    fedbus("data", "labels", "run", few, "-o", tmp_path / "labels.json")
    asked = len(server.requests)
    assert sorted(server.asked) == sorted(int(image.reshape(-1)[0]) for image in load_dataset(few).images)
    said = labels_of_a_demo(tmp_path / "asked", "--labeller", "openai")
    assert len(server.requests) == asked
    assert (tmp_path / "cache" / "fedbus" / "labels.sqlite").exists()

    recorded = {"OPENAI_BASE_URL": "http://127.0.0.1:9", "FEDBUS_LABELS_FILE": "labels.json"}
    assert labels_of_a_demo(tmp_path / "read", "--labeller", "recorded", **recorded) == said
    assert len(server.requests) == asked


async def test_the_labeller_that_up_starts_has_the_cache_of_its_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDBUS_LABELLER_CACHE", str(tmp_path / "mine.sqlite"))
    async with running_system(tmp_path / "store", tmp_path / "logs", nats_port=None, gateway_port=0) as system:
        assert "FEDBUS_LABELLER_CACHE" not in system.agent("labeller").env
        environment = Path(f"/proc/{system.processes.pids()['labeller']}/environ").read_bytes()
    assert f"FEDBUS_LABELLER_CACHE={tmp_path / 'mine.sqlite'}".encode() in environment.split(b"\0")
