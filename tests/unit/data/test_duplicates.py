from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image, ImageEnhance

from data.duplicates import DuplicateReport, find_duplicates, move_duplicates
from data.errors import PreparationError
from tests.unit.data.pictures import picture, save


def shown(report: DuplicateReport) -> list[tuple[str, list[str]]]:
    return [(group.kind, [image.path for image in group.images]) for group in report.groups]


def test_different_pictures_are_no_duplicates(tmp_path: Path) -> None:
    for seed in range(40):
        save(picture(seed), tmp_path / f"{seed}.png")
    report = find_duplicates([tmp_path])
    assert (report.compared, report.groups, report.unreadable) == (40, (), ())


def test_copies_are_exact_duplicates(tmp_path: Path) -> None:
    save(picture(1), tmp_path / "b.png")
    shutil.copy(tmp_path / "b.png", tmp_path / "a.png")
    shutil.copy(tmp_path / "b.png", tmp_path / "c.txt")
    save(picture(2), tmp_path / "d.png")
    assert shown(find_duplicates([tmp_path])) == [("exact", ["a.png", "b.png", "c.txt"])]


def test_reencoded_resized_and_brightened_pictures_are_near_duplicates(tmp_path: Path) -> None:
    original = picture(1, (400, 300))
    save(original, tmp_path / "original.png")
    save(original, tmp_path / "jpeg.jpg", quality=40)
    save(original.resize((160, 120)), tmp_path / "small.png")
    save(ImageEnhance.Brightness(original).enhance(1.1), tmp_path / "bright.png")
    save(picture(2, (400, 300)), tmp_path / "other.png")
    groups = shown(find_duplicates([tmp_path]))
    assert groups == [("near", ["bright.png", "jpeg.jpg", "original.png", "small.png"])]
    assert find_duplicates([tmp_path], distance=0).distance == 0


def test_rotated_pictures_are_compared_upright(tmp_path: Path) -> None:
    save(picture(1), tmp_path / "a.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    save(picture(1).transpose(Image.Transpose.ROTATE_90), tmp_path / "b.png", exif=exif)
    assert shown(find_duplicates([tmp_path])) == [("near", ["a.png", "b.png"])]


def test_plain_pictures_of_different_colours_are_different(tmp_path: Path) -> None:
    for colour in ("red", "green", "blue", "white", "black"):
        save(Image.new("RGB", (40, 40), colour), tmp_path / f"{colour}.png")
    assert find_duplicates([tmp_path]).groups == ()


def test_of_duplicates_across_folders_the_one_named_first_is_kept(tmp_path: Path) -> None:
    held_out, train = tmp_path / "held out", tmp_path / "train"
    save(picture(1, (60, 45)), held_out / "x" / "a.png")
    save(picture(1, (400, 300)), train / "big.png")
    save(picture(2), train / "c.png")
    report = find_duplicates([held_out, train])
    assert shown(report) == [("near", ["x/a.png", "big.png"])]
    assert report.groups[0].across
    assert [(image.width, image.height) for image in report.groups[0].images] == [(60, 45), (400, 300)]
    assert shown(find_duplicates([train, held_out])) == [("near", ["big.png", "x/a.png"])]


def test_within_a_folder_the_largest_is_kept(tmp_path: Path) -> None:
    save(picture(1, (60, 45)), tmp_path / "a.png")
    save(picture(1, (400, 300)), tmp_path / "b.png")
    report = find_duplicates([tmp_path])
    assert shown(report) == [("near", ["b.png", "a.png"])]
    assert not report.groups[0].across


def test_removed_duplicates_are_moved_and_nothing_is_overwritten(tmp_path: Path) -> None:
    folder = tmp_path / "train"
    save(picture(1), folder / "a.png")
    (folder / "x").mkdir()
    for name in ("x/b.png", "c.png"):
        shutil.copy(folder / "a.png", folder / name)
    save(picture(3), tmp_path / "train.duplicates" / "x" / "b.png")
    before = {path.read_bytes() for path in tmp_path.rglob("*.png")}
    moved = move_duplicates(find_duplicates([folder]))
    assert [(source.name, target.relative_to(tmp_path).as_posix()) for source, target in moved] == [
        ("c.png", "train.duplicates/c.png"),
        ("b.png", "train.duplicates/x/b.1.png"),
    ]
    assert [path.name for path in folder.rglob("*.png")] == ["a.png"]
    assert len(list(tmp_path.rglob("*.png"))) == 4
    assert {path.read_bytes() for path in tmp_path.rglob("*.png")} == before
    assert find_duplicates([folder]).groups == ()


def test_files_that_are_no_pictures_are_reported(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    report = find_duplicates([tmp_path])
    assert [(entry.path, bool(entry.reason)) for entry in report.unreadable] == [("a.txt", True)]


def test_a_folder_named_twice_is_compared_once(tmp_path: Path) -> None:
    save(picture(1), tmp_path / "in" / "a.png")
    assert find_duplicates([tmp_path / "in", tmp_path]).groups == ()


def test_wrong_arguments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PreparationError, match="no folder"):
        find_duplicates([tmp_path / "nowhere"])
    with pytest.raises(PreparationError, match="0 to 32"):
        find_duplicates([tmp_path], distance=33)


def test_pictures_behind_a_link_to_a_folder_are_compared_and_a_link_that_leads_back_is_named(tmp_path: Path) -> None:
    save(picture(1), tmp_path / "in" / "a.png")
    save(picture(1), tmp_path / "elsewhere" / "b.png")
    (tmp_path / "in" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "round").symlink_to(tmp_path / "in")
    report = find_duplicates([tmp_path / "in"])
    assert [[image.path for image in group.images] for group in report.groups] == [["a.png", "more/b.png"]]
    assert [(one.path, one.reason) for one in report.unreadable] == [("round", "a link to a folder that it lies in")]


def test_a_link_that_leads_nowhere_is_listed(tmp_path: Path) -> None:
    (tmp_path / "x.png").symlink_to(tmp_path / "gone.png")
    (one,) = find_duplicates([tmp_path]).unreadable
    assert (one.path, one.reason) == ("x.png", "the link leads nowhere")
