"""``fedbus data labels``: matching, settling by hand, and asking a model on loopback."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from agents.cli.labels import app
from agents.core.labels.errors import LabelsFileError
from agents.labeller.errors import (
    ApiKeyMissingError,
    CostLimitError,
    NothingLabelledError,
    UnreadableRepliesError,
)
from agents.runtime.shipped import DEFAULT_HELD_OUT_DATA
from data.dataset import DatasetManifest, ImageEntry, ImageFormat, load_dataset, write_dataset
from tests.unit.agents.labeller.label_server import LabelServer, label_server

CLASSES = ("tabby, tabby cat", "crane", "crane (bird)", "beagle")


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def matched(tmp_path: Path) -> Path:
    answers = {"1": "tabby", "2": "Crane", "3": "I don't know", "4": "zeppelin", "5": None, "6": "beagel dog"}
    (tmp_path / "answers.json").write_text(json.dumps(answers))
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES))
    out = tmp_path / "out.json"
    result = run("match", tmp_path / "answers.json", "--classes", tmp_path / "classes.txt", "-o", out)
    assert "1 matched, 1 ambiguous, 4 rejected" in result.output
    return out


def test_match_writes_what_matched_and_what_was_set_aside(matched: Path):
    content = json.loads(matched.read_text())
    assert content["matched"] == {"1": "tabby, tabby cat"}
    assert content["ambiguous"]["2"]["answer"] == "Crane"
    assert sorted(content["ambiguous"]["2"]["candidates"]) == ["crane", "crane (bird)"]
    assert {id_: one["reason"] for id_, one in content["rejected"].items()} == {
        "3": "unknown",
        "4": "not_a_class",
        "5": "unknown",
        "6": "not_a_class",
    }
    assert content["rejected"]["6"]["candidates"] == ["beagle"]


def test_classes_may_be_a_json_list(matched: Path, tmp_path: Path):
    (tmp_path / "classes.json").write_text(json.dumps(CLASSES))
    again = tmp_path / "again.json"
    run("match", tmp_path / "answers.json", "--classes", tmp_path / "classes.json", "-o", again)
    assert again.read_text() == matched.read_text()


def test_review_lists_what_is_open_and_settles_it_by_hand(matched: Path):
    listed = run("review", matched).output
    assert "'zeppelin'" in listed
    assert "near: beagle" in listed
    run("review", matched, "--set", "2=crane", "--set", "6=beagle", "--set", "1=beagle")
    content = json.loads(matched.read_text())
    assert content["matched"] == {"1": "beagle", "2": "crane", "6": "beagle"}
    assert content["ambiguous"] == {}
    assert list(content["rejected"]) == ["3", "4", "5"]


@pytest.mark.parametrize("setting", ["2=zeppelin", "2=Crane bird or beagle", "77=beagle", "2=beagel"])
def test_review_refuses_unknown_images_and_classes_and_changes_nothing(matched: Path, setting: str):
    before = matched.read_text()
    with pytest.raises(LabelsFileError):
        run("review", matched, "--set", "6=beagle", "--set", setting)
    assert matched.read_text() == before


def test_a_setting_without_a_class_is_a_wrong_argument(matched: Path):
    assert run("review", matched, "--set", "2").exit_code == 2


@pytest.mark.parametrize("content", ["[1, 2]", "{", '{"a": 1}', '{"matched": {}}'])
def test_files_that_are_something_else_are_refused(tmp_path: Path, content: str):
    path = tmp_path / "file.json"
    path.write_text(content)
    with pytest.raises(LabelsFileError):
        run("review", path)
    with pytest.raises(LabelsFileError):
        run("match", path, "--classes", path, "-o", tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LabelServer]:
    with label_server("beagle", "tabby, tabby cat") as running:
        monkeypatch.setenv("OPENAI_API_KEY", "key")
        monkeypatch.setenv("OPENAI_BASE_URL", running.url)
        monkeypatch.setenv("FEDBUS_LABELLER_CACHE", str(tmp_path / "labels.sqlite"))
        yield running


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    pixels = np.zeros((5, 4, 4, 1), np.uint8)
    pixels[:, 0, 0, 0] = (0, 1, 2, 3, 2)
    facts = DatasetManifest(
        name="five",
        licence="none",
        notice="",
        image=ImageFormat(size=4, channels=1),
        classes=("beagle", "tabby, tabby cat"),
    )
    entries = [ImageEntry(id=f"pic-{index}", source=f"{index}.png") for index in range(5)]
    write_dataset(tmp_path / "five", facts, entries, pixels)
    return tmp_path / "five"


def test_run_asks_about_every_image_once_and_matches_the_answers(dataset: Path, server: LabelServer, tmp_path: Path):
    server.refused_pixels = {3}
    out = tmp_path / "labels.json"
    output = run("run", dataset, "-o", out, "--images-per-request", 2).output
    assert "4 of 5 images to ask about" in output
    content = json.loads(out.read_text())
    assert content["matched"] == {
        "pic-0": "beagle",
        "pic-1": "tabby, tabby cat",
        "pic-2": "beagle",
        "pic-4": "beagle",
    }
    assert content["rejected"]["pic-3"]["reason"] == "refused"
    assert content["images"]["pic-2"] == content["images"]["pic-4"] != content["images"]["pic-0"]
    run("review", out, "--set", "pic-4=tabby")
    assert {id_ for id_, name in json.loads(out.read_text())["matched"].items() if name[0] == "t"} == {
        *("pic-1", "pic-2", "pic-4")  # 2 and 4 are equal
    }
    count = len(server.requests)
    assert "0 of 5 images to ask about" in run("run", dataset, "-o", out).output
    assert len(server.requests) == count


def test_a_run_that_labels_nothing_writes_its_file_and_fails(dataset: Path, server: LabelServer, tmp_path: Path):
    server.wrong = dict.fromkeys(range(4), "zeppelin")
    server.refused_pixels = {3}
    out = tmp_path / "labels.json"
    with pytest.raises(NothingLabelledError, match="no image got a label: 4 not a class, 1 refused") as raised:
        run("run", dataset, "-o", out, "--images-per-request", 1)
    assert "data labels review" in raised.value.hint
    assert json.loads(out.read_text())["matched"] == {}
    command = [sys.executable, "-m", "agents.cli", "data", "labels", "run", dataset, "-o", out]
    again = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert again.returncode == 1
    assert "[nothing_labelled]" in again.stderr


def test_a_run_whose_first_replies_cannot_be_read_stops_and_writes_nothing(server: LabelServer, tmp_path: Path):
    server.always = "prose"
    with pytest.raises(UnreadableRepliesError, match="I see"):
        run("run", DEFAULT_HELD_OUT_DATA, "-o", tmp_path / "labels.json")
    assert len(server.requests) <= 12
    assert not (tmp_path / "labels.json").exists()


def test_a_dataset_without_images_has_nothing_to_label(server: LabelServer, tmp_path: Path):
    facts = DatasetManifest(
        name="none", licence="none", notice="", image=ImageFormat(size=4, channels=1), classes=("cat", "dog")
    )
    write_dataset(tmp_path / "none", facts, [], np.zeros((0, 4, 4, 1), np.uint8))
    with pytest.raises(NothingLabelledError, match="no images"):
        run("run", tmp_path / "none", "-o", tmp_path / "labels.json", "--dry-run")


def test_a_dry_run_needs_no_key_and_asks_nothing(
    dataset: Path, server: LabelServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("OPENAI_API_KEY")
    output = run("run", dataset, "-o", tmp_path / "labels.json", "--dry-run").output
    assert "about $0.00" in output
    assert "tokens" in output
    assert server.requests == []
    assert not (tmp_path / "labels.json").exists()
    with pytest.raises(ApiKeyMissingError):
        run("run", dataset, "-o", tmp_path / "labels.json")


def test_a_run_that_may_cost_too_much_is_refused_before_it_asks(server: LabelServer, tmp_path: Path):
    with pytest.raises(CostLimitError):
        run("run", DEFAULT_HELD_OUT_DATA, "-o", tmp_path / "labels.json", "--max-cost", "0.01")
    assert server.requests == []
    assert len(load_dataset(DEFAULT_HELD_OUT_DATA)) == 2000


def test_review_asks_in_a_terminal_and_writes_each_choice_at_once(matched: Path):
    terminal, inside = pty.openpty()
    command = [sys.executable, "-c", "from agents.cli.labels import app; app()", "review", str(matched)]
    process = subprocess.Popen(command, stdin=inside, stdout=inside, stderr=inside, close_fds=True)
    os.close(inside)
    try:
        # 2 (ambiguous): its second candidate. 3: left open. 4: a typing error, then a class. 5 and 6: left open.
        os.write(terminal, b"2\n\nzeppelin\nbeagle\n\n\n")
        shown = b""
        with contextlib.suppress(OSError):  # a terminal whose other side has closed is an error and no end of file
            while part := os.read(terminal, 4096):
                shown += part
        assert process.wait(20) == 0, shown.decode()
    finally:
        process.kill()
        process.wait(5)
        os.close(terminal)
    content = json.loads(matched.read_text())
    assert content["matched"] == {"1": "tabby, tabby cat", "2": "crane (bird)", "4": "beagle"}
    assert list(content["rejected"]) == ["3", "5", "6"]
    assert b"is not one of the 4 classes" in shown
