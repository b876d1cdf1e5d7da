"""A run names its kind of task, and one that this version does not have is refused before anything is said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from agents.cli.run_setup import DataMismatchError, RunSources, start_run
from agents.core.learning.kinds import TaskKindUnknownError
from agents.runtime.shipped import DEFAULT_ARTIFACTS
from bus.client import Bus
from bus.words.subjects import events_of_type
from tests.builders import config


async def test_a_run_of_an_unknown_kind_is_refused(bus: Bus, unique_run: str):
    with pytest.raises(TaskKindUnknownError, match="poetry"):
        await start_run(bus, unique_run, config(users=2).model_copy(update={"kind": "poetry"}), RunSources())
    assert await bus.find(events_of_type("run.started", unique_run)) is None


async def test_artifacts_of_another_kind_than_the_run_are_refused(bus: Bus, unique_run: str, tmp_path: Path):
    shutil.copytree(DEFAULT_ARTIFACTS, tmp_path / "artifacts")
    manifest = tmp_path / "artifacts" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"kind": "poetry"}))
    with pytest.raises(DataMismatchError, match="poetry"):
        await start_run(bus, unique_run, config(users=2), RunSources(tmp_path / "artifacts"))
    assert await bus.find(events_of_type("run.started", unique_run)) is None
