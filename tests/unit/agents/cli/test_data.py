from __future__ import annotations

import base64
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from agents.cli.data import app
from artifacts.default_task import DEFAULT_DIRECTORY
from data.dataset import load_dataset
from data.errors import ExchangeError, PartitionError
from data.exchange import IMAGES_NAME, LABELS_NAME, import_sources
from data.fashion_mnist import USERS
from tests.unit.data.pictures import picture, save


def run(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, [str(argument) for argument in arguments])


def test_prepare_takes_the_models_resolution_and_says_what_it_left_out(tmp_path: Path) -> None:
    save(picture(1), tmp_path / "in" / "bag" / "1.jpg")
    save(picture(2), tmp_path / "in" / "spoon [bold]" / "2.jpg")
    (tmp_path / "in" / "note.txt").write_text("text")
    result = run("prepare", tmp_path / "in", "--out", tmp_path / "out", "--artifacts", DEFAULT_DIRECTORY)
    assert result.exit_code == 0, result.exception
    assert "2 images of 28x28x1, 1 with one of 10 labels" in result.stdout
    assert "skipped note.txt" in result.stdout
    assert "spoon [bold]" in result.stdout
    assert load_dataset(tmp_path / "out").manifest.name == "in"


def test_prepare_without_a_model_takes_folder_names_as_classes(tmp_path: Path) -> None:
    save(picture(1), tmp_path / "in" / "spoon" / "1.jpg")
    assert run("prepare", tmp_path / "in", "-o", tmp_path / "out").exit_code == 0
    assert load_dataset(tmp_path / "out").classes == ("spoon",)


def test_duplicates_prints_writes_and_moves(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save(picture(1), tmp_path / "in" / f"{name}.png")
    result = run("duplicates", tmp_path / "in", "--out", tmp_path / "d.json", "--remove")
    assert result.exit_code == 0, result.exception
    assert "2 pictures compared, 1 groups, 1 could go" in result.stdout
    groups = json.loads((tmp_path / "d.json").read_text())["groups"]
    assert [image["path"] for image in groups[0]["images"]] == ["a.png", "b.png"]
    assert (tmp_path / "in.duplicates" / "b.png").is_file()


def test_partition_prints_draws_and_writes_who_has_what(tmp_path: Path) -> None:
    chart, shares = tmp_path / "p.png", tmp_path / "p.json"
    options = ("--users", 7, "--images", 30, "--scheme", "pathological:3", "--picture", chart, "--out", shares)
    result = run("partition", USERS, *options)
    assert result.exit_code == 0, result.exception
    assert "user-006" in result.stdout
    assert "ankle boot" in result.stdout
    with Image.open(chart) as image:
        assert image.format == "PNG"
        assert len(np.unique(np.asarray(image.convert("L")))) > 10
    users = json.loads(shares.read_text())["users"]
    assert [len(ids) for ids in users.values()] == [30] * 7
    known = {entry.id for entry in load_dataset(USERS).manifest.images}
    assert known >= {name for ids in users.values() for name in ids}


def test_partition_of_too_few_images_is_refused() -> None:
    assert isinstance(run("partition", USERS, "--users", 101).exception, PartitionError)


def test_export_and_import_give_the_same_images_and_labels(tmp_path: Path) -> None:
    assert run("export", USERS, "-o", tmp_path / "files").exit_code == 0
    labels = json.loads((tmp_path / "files" / LABELS_NAME).read_text())
    assert labels["train-40000"] == "sneaker"
    result = run("import", tmp_path / "files", "-o", tmp_path / "back", "--model", DEFAULT_DIRECTORY)
    assert result.exit_code == 0, result.exception
    before, after = load_dataset(USERS), load_dataset(tmp_path / "back")
    assert np.array_equal(before.images, after.images)
    assert np.array_equal(before.labels, after.labels)
    assert [entry.id for entry in before.manifest.images] == [entry.id for entry in after.manifest.images]


def test_import_skips_broken_images_and_keeps_the_rest(tmp_path: Path) -> None:
    stream = io.BytesIO()
    picture(1).save(stream, "JPEG")
    text = base64.b64encode(stream.getvalue()).decode()
    images = {
        "good": f"data:image/jpeg;base64,{text}",
        "bare": text,
        "broken": "data:image/png;base64,####",
        "cut": f"data:image/jpeg;base64,{text[: len(text) // 8 * 4]}",
        "link": "data:text/plain,hello",
    }
    (tmp_path / IMAGES_NAME).write_text(json.dumps(images))
    assert run("import", tmp_path, "-o", tmp_path / "out").exit_code == 0
    manifest = load_dataset(tmp_path / "out").manifest
    assert [entry.id for entry in manifest.images] == ["good", "bare"]
    assert {entry.source for entry in manifest.skipped} == {"broken", "cut", "link"}


@pytest.mark.parametrize(
    ("images", "labels", "reason"),
    [
        (None, None, "cannot read"),
        ("{", None, "cannot read"),
        ([1], None, "not a JSON object"),
        ({"a": 1}, None, "no text for 1 of its images: a"),
        ({"a": "x"}, {"b": "cat"}, "lacks, such as 'b'"),
    ],
)
def test_files_that_do_not_fit_are_refused(images: Any, labels: Any, reason: str, tmp_path: Path) -> None:
    if images is not None:
        (tmp_path / IMAGES_NAME).write_text(images if isinstance(images, str) else json.dumps(images))
    if labels is not None:
        (tmp_path / LABELS_NAME).write_text(json.dumps(labels))
    error = run("import", tmp_path, "-o", tmp_path / "out").exception
    assert isinstance(error, ExchangeError)
    assert reason in error.message


def test_labels_that_are_no_class_or_several_are_named(tmp_path: Path) -> None:
    save(picture(1), tmp_path / "in" / "spoon" / "1.jpg")
    save(picture(2), tmp_path / "in" / "bag" / "2.jpg")
    assert run("prepare", tmp_path / "in", "-o", tmp_path / "plain").exit_code == 0
    assert run("export", tmp_path / "plain", "-o", tmp_path / "files").exit_code == 0
    result = run("import", tmp_path / "files", "-o", tmp_path / "back", "--model", DEFAULT_DIRECTORY)
    assert "1 with one of 10 labels" in result.stdout
    assert "no class of the model, so without label: pictures of spoon" in result.stdout


def test_file_names_with_line_breaks_and_other_bytes_stay_on_their_line(tmp_path: Path) -> None:
    for number, name in enumerate((b"a\nb \xff [red].png", b"c\x1b[2J.png")):
        stream = io.BytesIO()
        picture(1).save(stream, "PNG")
        folder = tmp_path / f"in\n{number}"
        folder.mkdir()
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_bytes(stream.getvalue())
        (folder / "no\npicture.txt").write_text("x")
    result = run("duplicates", *tmp_path.glob("in*"), "--out", tmp_path / "d.json", "--remove")
    assert result.exit_code == 0, result.exception
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines[:1]] == ["exact,"]
    assert len(lines) == 1 + 2 + 1 + 1 + 2 + 1, lines
    assert r"a\nb \udcff [red].png  120x90  " in result.stdout
    assert r"c\x1b[2J.png  120x90  " in result.stdout
    assert "\x1b" not in result.stdout
    groups = json.loads((tmp_path / "d.json").read_text())["groups"]
    assert {image["path"] for image in groups[0]["images"]} == {"a\nb \udcff [red].png", "c\x1b[2J.png"}
    prepared = run("prepare", tmp_path / "in\n0", "-o", tmp_path / "out")
    assert r"skipped no\npicture.txt" in prepared.stdout


def test_import_names_what_has_no_text_and_reads_what_windows_wrote(tmp_path: Path) -> None:
    (tmp_path / IMAGES_NAME).write_text("\ufeff{}", encoding="utf-8")
    assert import_sources(None, tmp_path / IMAGES_NAME) == []
    (tmp_path / LABELS_NAME).write_text('{"a": "cat", "b": null}', encoding="utf-8")
    with pytest.raises(ExchangeError, match="no text for 1 of its images: b"):
        import_sources(tmp_path / LABELS_NAME, tmp_path / IMAGES_NAME)
