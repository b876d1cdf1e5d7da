from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data import prepare as prepare_module
from data.dataset import ImageFormat, load_dataset
from data.errors import DatasetError, PreparationError
from data.pictures import Resizing, read_picture
from data.prepare import JOURNAL_NAME, Source, Target, folder_sources, labelled_as, prepare
from tests.unit.data.pictures import picture, save

TARGET = Target(ImageFormat(size=8, channels=3), Resizing())


def fill(folder: Path, count: int = 5) -> Path:
    for index in range(count):
        save(picture(index), folder / ("cat", "dog")[index % 2] / f"{index}.png")
    return folder


def run(folder: Path, out: Path, target: Target = TARGET) -> Any:
    sources = folder_sources(folder, leave_out=out)
    return prepare(sources if target.classes is None else labelled_as(sources, target.classes)[0], out, target)


def test_pictures_in_class_folders_become_a_labelled_dataset(tmp_path: Path) -> None:
    folder, out = fill(tmp_path / "in"), tmp_path / "out"
    run(folder, out)
    dataset = load_dataset(out)
    assert [(entry.source, entry.label) for entry in dataset.manifest.images] == [
        ("cat/0.png", "cat"),
        ("cat/2.png", "cat"),
        ("cat/4.png", "cat"),
        ("dog/1.png", "dog"),
        ("dog/3.png", "dog"),
    ]
    assert dataset.classes == ("cat", "dog")
    for index, entry in enumerate(dataset.manifest.images):
        assert np.array_equal(dataset.images[index], read_picture(folder / entry.source, TARGET.image, Resizing()))
    assert {path.name for path in out.iterdir()} == {"manifest.json", "images-00000.safetensors"}


def test_flat_pictures_have_no_label(tmp_path: Path) -> None:
    save(picture(0), tmp_path / "in" / "a.png")
    manifest = run(tmp_path / "in", tmp_path / "out")
    assert [entry.label for entry in manifest.images] == [None]
    assert manifest.classes == ()


def test_labels_are_the_models_classes_and_other_folders_are_named(tmp_path: Path) -> None:
    folder = fill(tmp_path / "in", 2)
    save(picture(9), folder / "Eel" / "9.png")
    classes = ("eel", "dog")
    sources, unclear = labelled_as(folder_sources(folder), classes)
    assert unclear == {"cat": ()}
    manifest = prepare(sources, tmp_path / "out", Target(TARGET.image, TARGET.resizing, classes))
    assert [entry.label for entry in manifest.images] == ["eel", None, "dog"]
    assert manifest.classes == classes


def test_unusable_files_are_listed_with_their_reason_and_the_rest_is_kept(tmp_path: Path) -> None:
    folder, out = fill(tmp_path / "in", 2), tmp_path / "out"
    good = (folder / "cat" / "0.png").read_bytes()
    (folder / "empty.png").write_bytes(b"")
    (folder / "half.png").write_bytes(good[: len(good) // 2])
    (folder / "note.txt").write_text("no picture")
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    os.mkfifo(folder / "pipe.png")
    bytes_name = os.fsencode(folder) + b"/bad-\xff.txt"
    Path(os.fsdecode(bytes_name)).write_text("no picture")
    manifest = run(folder, out)
    assert {entry.source: entry.reason.split(":")[0] for entry in manifest.skipped} == {
        "bad-\\udcff.txt": "not a picture that Pillow reads",
        "empty.png": "empty file",
        "gone.png": "cannot be read",
        "half.png": "broken",
        "note.txt": "not a picture that Pillow reads",
        "pipe.png": "not a regular file",
    }
    assert [entry.source for entry in load_dataset(out).manifest.images] == ["cat/0.png", "dog/1.png"]


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare_module, "FLUSH_BYTES", 2 * TARGET.image.bytes)
    folder, out = fill(tmp_path / "in", 7), tmp_path / "out"
    sources = folder_sources(folder)

    def interrupt(done: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(sources, out, TARGET, progress=interrupt)
    with pytest.raises(DatasetError, match="does not exist"):
        load_dataset(out)
    opened: list[str] = []

    def watched(source: Source) -> Source:
        def note() -> Any:
            opened.append(source.name)
            return source.open()

        return Source(source.name, source.label, note)

    prepare([watched(source) for source in sources], out, TARGET)
    assert opened == [source.name for source in sources[5:]]
    run(folder, tmp_path / "at once")
    assert np.array_equal(load_dataset(out).images, load_dataset(tmp_path / "at once").images)
    assert not (out / JOURNAL_NAME).exists()


def test_a_crash_after_a_part_was_written_repeats_that_part_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare_module, "FLUSH_BYTES", 2 * TARGET.image.bytes)
    folder, out = fill(tmp_path / "in", 6), tmp_path / "out"
    write_manifest = prepare_module.write_manifest
    writes = 0

    def crash(*arguments: Any) -> None:
        nonlocal writes
        writes += 1
        if writes >= 2:
            raise OSError("no space left on device")
        write_manifest(*arguments)

    monkeypatch.setattr(prepare_module, "write_manifest", crash)
    with pytest.raises(OSError, match="no space"):
        run(folder, out)
    monkeypatch.setattr(prepare_module, "write_manifest", write_manifest)
    manifest = run(folder, out)
    assert [part.count for part in manifest.parts] == [2, 2, 2]
    assert len(load_dataset(out).images) == 6


def test_a_second_run_adds_what_is_new_and_tries_the_skipped_again(tmp_path: Path) -> None:
    folder, out = fill(tmp_path / "in", 2), tmp_path / "out"
    (folder / "later.png").write_bytes(b"")
    run(folder, out)
    before = load_dataset(out).images
    save(picture(7), folder / "later.png")
    save(picture(8), folder / "eel" / "8.png")
    manifest = run(folder, out)
    assert [entry.source for entry in manifest.images] == ["cat/0.png", "dog/1.png", "later.png", "eel/8.png"]
    assert manifest.skipped == ()
    assert manifest.classes == ("cat", "dog", "eel")
    assert np.array_equal(load_dataset(out).images[:2], before)


def test_what_the_folder_does_not_have_any_more_is_gone_from_the_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare_module, "FLUSH_BYTES", 2 * TARGET.image.bytes)
    folder, out = fill(tmp_path / "in"), tmp_path / "out"
    run(folder, out)
    (folder / "cat").rename(folder / "kitten")
    (folder / "dog" / "1.png").unlink()
    manifest = run(folder, out)
    assert [entry.source for entry in manifest.images] == ["dog/3.png", *(f"kitten/{at}.png" for at in (0, 2, 4))]
    assert manifest.classes == ("dog", "kitten")
    run(folder, tmp_path / "anew")
    assert np.array_equal(load_dataset(out).images, load_dataset(tmp_path / "anew").images)
    assert {path.name for path in out.iterdir()} == {path.name for path in (tmp_path / "anew").iterdir()}


def test_running_again_without_news_changes_nothing(tmp_path: Path) -> None:
    folder, out = fill(tmp_path / "in"), tmp_path / "out"
    run(folder, out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    run(folder, out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_a_folder_with_other_settings_is_not_mixed(tmp_path: Path) -> None:
    folder, out = fill(tmp_path / "in"), tmp_path / "out"
    run(folder, out)
    for other in (
        Target(ImageFormat(size=9, channels=3), Resizing()),
        Target(ImageFormat(size=8, channels=1), Resizing()),
        Target(TARGET.image, Resizing(), ("cat", "dog", "eel")),
    ):
        with pytest.raises(PreparationError, match="differ"):
            run(folder, out, other)
    assert len(load_dataset(out)) == 5


def test_an_output_folder_inside_the_input_is_no_input(tmp_path: Path) -> None:
    folder = fill(tmp_path / "in")
    for _ in range(2):
        manifest = run(folder, folder / "out")
        assert len(manifest.images) == 5
        assert manifest.skipped == ()


def test_a_folder_without_any_picture_gives_an_empty_dataset(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    assert run(tmp_path / "in", tmp_path / "out").images == ()
    assert len(load_dataset(tmp_path / "out")) == 0
    with pytest.raises(PreparationError, match="no folder"):
        folder_sources(tmp_path / "nowhere")


def test_pictures_of_a_thousand_by_a_thousand_are_made_small(tmp_path: Path) -> None:
    save(Image.new("RGB", (1_000, 1_000), "green"), tmp_path / "in" / "a.jpg")
    run(tmp_path / "in", tmp_path / "out")
    assert load_dataset(tmp_path / "out").images.shape == (1, 8, 8, 3)


def test_a_folder_of_a_name_that_two_classes_share_has_no_label_and_one_with_an_id_has(tmp_path: Path) -> None:
    for name in ("crane", "Crane (2)", "eel"):
        save(picture(1), tmp_path / name / "1.png")
    sources, unclear = labelled_as(folder_sources(tmp_path), ("crane (0)", "eel", "crane (2)"))
    assert {source.name: source.label for source in sources} == {
        "Crane (2)/1.png": "crane (2)",
        "crane/1.png": None,
        "eel/1.png": "eel",
    }
    assert unclear == {"crane": ("crane (0)", "crane (2)")}


def test_links_to_folders_are_followed_and_one_that_leads_back_is_named(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "in", tmp_path / "elsewhere"
    save(picture(1), elsewhere / "1.png")
    save(picture(2), elsewhere / "deeper" / "2.png")
    save(picture(3), folder / "cat" / "3.png")
    (folder / "dog").symlink_to(elsewhere)
    (folder / "cat" / "back").symlink_to(folder)
    (folder / "itself").symlink_to(folder / "itself")
    manifest = run(folder, folder / "out")
    assert [(entry.source, entry.label) for entry in manifest.images] == [
        ("cat/3.png", "cat"),
        ("dog/1.png", "dog"),
        ("dog/deeper/2.png", "deeper"),
    ]
    assert {entry.source: entry.reason.split(":")[0] for entry in manifest.skipped} == {
        "cat/back": "a link to a folder that it lies in",
        "itself": "cannot be read",
    }
    assert len(run(folder, folder / "out").images) == 3


@pytest.mark.parametrize(("characters", "kept"), [(0, False), (1, True), (500, True), (501, False), (5000, False)])
def test_a_name_that_is_too_long_costs_its_picture_only(tmp_path: Path, characters: int, kept: bool) -> None:
    save(picture(0), tmp_path / "0.png")
    one = Source("other", None, lambda: contextlib.nullcontext(tmp_path / "0.png"))
    manifest = prepare([replace(one, name="x" * characters), one], tmp_path / "out", TARGET)
    assert len(manifest.images) == 1 + kept
    assert kept or "characters" in manifest.skipped[0].reason
