from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data import dataset as dataset_module
from data.dataset import (
    UNLABELLED,
    DatasetManifest,
    ImageEntry,
    ImageFormat,
    SkippedEntry,
    load_dataset,
    write_dataset,
)
from data.errors import DatasetError, DatasetIntegrityError
from data.fashion_mnist import HELD_OUT, USERS, build
from data.fashion_mnist_source import CLASSES

FACTS = DatasetManifest(
    name="zoo",
    licence="CC0-1.0",
    notice="",
    image=ImageFormat(size=4, channels=3),
    classes=("ant", "bee"),
    skipped=(SkippedEntry(source="x.txt", reason="no image"),),
)


def entries(count: int) -> list[ImageEntry]:
    labels = ("ant", "bee", None)
    return [ImageEntry(id=f"i{index}", source=f"{index}.png", label=labels[index % 3]) for index in range(count)]


def pictures(count: int) -> Any:
    return np.random.default_rng(0).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)


def test_a_dataset_comes_back_as_it_was_written(tmp_path: Path) -> None:
    images = pictures(7)
    write_dataset(tmp_path, FACTS, entries(7), images)
    loaded = load_dataset(tmp_path)
    assert np.array_equal(loaded.images, images)
    assert loaded.labels.tolist() == [0, 1, UNLABELLED, 0, 1, UNLABELLED, 0]
    assert loaded.classes == ("ant", "bee")
    assert loaded.manifest.skipped == FACTS.skipped
    assert [entry.id for entry in loaded.manifest.images] == [f"i{index}" for index in range(7)]


def test_images_spread_over_parts_of_bounded_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset_module, "PART_BYTES", 3 * FACTS.image.bytes)
    images = pictures(8)
    manifest = write_dataset(tmp_path, FACTS, entries(8), images)
    assert [(part.path, part.first, part.count) for part in manifest.parts] == [
        ("images-00000.safetensors", 0, 3),
        ("images-00001.safetensors", 3, 3),
        ("images-00002.safetensors", 6, 2),
    ]
    assert np.array_equal(load_dataset(tmp_path).images, images)


def test_an_empty_dataset_can_be_written_and_read(tmp_path: Path) -> None:
    write_dataset(tmp_path, FACTS, [], pictures(0))
    loaded = load_dataset(tmp_path)
    assert len(loaded) == 0
    assert loaded.images.shape == (0, 4, 4, 3)


def test_writing_again_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_dataset(tmp_path / name, FACTS, entries(5), pictures(5))
    for file in ("manifest.json", "images-00000.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_a_changed_part_is_found(tmp_path: Path) -> None:
    write_dataset(tmp_path, FACTS, entries(2), pictures(2))
    path = tmp_path / "images-00000.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DatasetIntegrityError, match="SHA-256"):
        load_dataset(tmp_path)
    path.unlink()
    with pytest.raises(DatasetIntegrityError, match="cannot read"):
        load_dataset(tmp_path)


def test_a_part_that_is_no_safetensors_file_is_reported(tmp_path: Path) -> None:
    write_dataset(tmp_path, FACTS, entries(2), pictures(2))
    (tmp_path / "images-00000.safetensors").write_bytes(b"broken")
    with pytest.raises(DatasetError, match="cannot read"):
        _ = load_dataset(tmp_path, verify=False).images


def test_images_that_do_not_fit_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    for wrong in (pictures(3), pictures(2)[:, :2], pictures(2).astype(np.float32)):
        with pytest.raises(DatasetError, match="does not fit"):
            write_dataset(tmp_path / "new", FACTS, entries(2), wrong)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"version": 2}, "version"),
        ({"classes": ["ant", "ant"]}, "stands twice"),
        ({"classes": ["ant"]}, "no classes"),
        ({"parts": []}, "the parts hold 0"),
        ({"image": {"size": 0, "channels": 3}}, "size"),
        ({"image": {"size": 4, "channels": 2}}, "channels"),
        ({"extra": 1}, "extra"),
    ],
)
def test_a_malformed_manifest_is_refused(change: dict[str, Any], reason: str, tmp_path: Path) -> None:
    write_dataset(tmp_path, FACTS, entries(2), pictures(2))
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(DatasetError, match=reason):
        load_dataset(tmp_path)


def test_parts_cannot_lie_outside_the_folder(tmp_path: Path) -> None:
    write_dataset(tmp_path, FACTS, entries(2), pictures(2))
    path = tmp_path / "manifest.json"
    path.write_text(path.read_text().replace("images-00000", "../images-00000"))
    with pytest.raises(DatasetError, match="path"):
        load_dataset(tmp_path)


def test_a_folder_without_a_dataset_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(DatasetError) as caught:
        load_dataset(tmp_path)
    assert "data prepare" in caught.value.hint


def test_the_shipped_sample_has_a_hundred_users_images_of_ten_classes() -> None:
    users, held_out = load_dataset(USERS), load_dataset(HELD_OUT)
    for part in (users, held_out):
        assert part.images.shape == (2_000, 28, 28, 1)
        assert part.classes == CLASSES
        assert np.bincount(part.labels, minlength=10).min() > 150
        assert part.manifest.licence == "MIT"
    assert users.manifest.images[0].id == "train-40000"
    assert held_out.manifest.images[0].id == "test-02000"
    assert "Permission is hereby granted" in (USERS.parent / "NOTICE").read_text()


def test_the_sample_takes_its_images_from_the_stated_places(tmp_path: Path) -> None:
    """With source files in which each image tells its own place."""
    for name, count in (("train", 42_000), ("t10k", 4_000)):
        images = np.zeros((count, 28, 28), np.uint8)
        images[:, 0, 0], images[:, 0, 1] = np.arange(count) // 256, np.arange(count) % 256
        header = struct.pack(">BBBB3I", 0, 0, 8, 3, count, 28, 28)
        (tmp_path / f"{name}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        labels = (np.arange(count) % 10).astype(np.uint8)
        (tmp_path / f"{name}-labels-idx1-ubyte").write_bytes(
            struct.pack(">BBBBI", 0, 0, 8, 1, count) + labels.tobytes()
        )
    build(tmp_path / "out", tmp_path)
    for folder, first in (("users", 40_000), ("held_out", 2_000)):
        made = load_dataset(tmp_path / "out" / folder)
        places = made.images[:, 0, 0, 0].astype(int) * 256 + made.images[:, 0, 1, 0]
        assert np.array_equal(places, np.arange(first, first + 2_000))
        assert np.array_equal(made.labels, places % 10)
