"""An older recording is brought up to date, or refused with the way out."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agents.core.learning.scores import MAX_LOSS
from agents.words.events import LARGEST_LOSS, ModelEvaluated
from bus.errors import MalformedRecordingError
from bus.recording import formats
from bus.recording.files import load_recording
from bus.recording.formats import FORMAT, upgraded
from bus.words.payload import Payload, declared_for_a_while, new_role, payloads
from tests.conftest import SMALL_RUN


def rewritten(folder: Path, change: Callable[[list[dict[str, Any]]], None]) -> Path:
    """The small run, which is of format 1, with its lines changed."""
    lines = [json.loads(line) for line in gzip.decompress(SMALL_RUN.read_bytes()).splitlines()]
    change(lines)
    path = folder / "run.jsonl"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


def diverged(lines: list[dict[str, Any]]) -> None:
    """As format 1 wrote a model whose loss was not a number: null is what JSON made of it."""
    scores = [line["event"]["data"]["updated"] for line in lines if ".model.evaluated." in line.get("subject", "")]
    scores[-1]["loss"] = None


def test_a_recording_of_format_1_is_read(tmp_path: Path) -> None:
    recording = load_recording(SMALL_RUN)
    assert recording.format == 1
    evaluated = [one.event.data for one in recording.events if isinstance(one.event.data, ModelEvaluated)]
    assert all(one.updated.loss < 10 for one in evaluated)


def test_a_loss_that_format_1_could_not_say_is_the_largest(tmp_path: Path) -> None:
    recording = load_recording(rewritten(tmp_path, diverged))
    last = [one.event.data for one in recording.events if isinstance(one.event.data, ModelEvaluated)][-1]
    assert last.updated.loss == LARGEST_LOSS == MAX_LOSS
    assert last.base.loss < 10


def test_what_is_no_event_of_format_2_is_refused_there(tmp_path: Path) -> None:
    def change(lines: list[dict[str, Any]]) -> None:
        diverged(lines)
        lines[0]["fedbus-recording"] = FORMAT

    with pytest.raises(MalformedRecordingError, match="loss"):
        load_recording(rewritten(tmp_path, change))


@pytest.mark.parametrize(
    ("version", "said"),
    [
        (FORMAT + 1, "install a later one"),
        (0, "header"),
        (-1, "header"),
        (True, "header"),
        ("1", "header"),
        (None, "header"),
    ],
)
def test_another_format_is_refused_with_what_to_do(tmp_path: Path, version: object, said: str) -> None:
    path = rewritten(tmp_path, lambda lines: lines[0].update({"fedbus-recording": version}))
    with pytest.raises(MalformedRecordingError, match=said):
        load_recording(path)


def test_a_format_that_no_step_leads_from_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "OLDEST", 2)
    with pytest.raises(MalformedRecordingError, match="older than this version"):
        load_recording(SMALL_RUN)


def test_the_steps_of_an_event_follow_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "FORMAT", 4)
    steps = {1: lambda data: data | {"first": True}, 3: lambda data: data | {"third": "first" in data}}
    with declared_for_a_while():
        new_role("porter")
        type(
            "DoorOpened",
            (Payload,),
            {"TYPE": "door.opened", "SAID_BY": ("porter",), "UPGRADES": steps, "__module__": __name__},
        )
        event = {"type": "fedbus.door.opened", "data": {}}
        assert upgraded(event, 1)["data"] == {"first": True, "third": True}
        assert upgraded(event, 2)["data"] == {"third": False}
        assert upgraded(event, 4) == event


def test_every_step_leads_from_a_format_that_there_was() -> None:
    assert {step for payload in payloads() for step in payload.UPGRADES} <= set(range(formats.OLDEST, FORMAT))
