"""Finds exact and near duplicates among folders of pictures, also between a training set and a held-out set.

Exact duplicates have the same SHA-256. Near ones have perceptual hashes (of the discrete cosine transform, 64 bits,
from `imagehash`) that differ in few bits, and about the same mean colour, which the hash does not see.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bus.process.files import sha256_of
from bus.words.values import Frozen
from data.errors import PictureError, PreparationError
from data.files import files_below
from data.pictures import open_upright

DEFAULT_DISTANCE = 6
"""Bits of 64; unrelated pictures differ in about 32, re-encoded or resized ones in 0 to 4."""
_COLOUR_DISTANCE = 40.0
_BLOCK = 512


class DuplicateImage(Frozen):
    """One picture of a group; `distance` is in bits from the one that is kept."""

    folder: str
    path: str
    sha256: str
    width: int
    height: int
    distance: int


class DuplicateGroup(Frozen):
    """Pictures that are the same, the first of which is kept; `across` when they lie in several of the folders."""

    kind: Literal["exact", "near"]
    across: bool
    images: tuple[DuplicateImage, ...]


class Unreadable(Frozen):
    """A file that was not compared, and why."""

    folder: str
    path: str
    reason: str


class DuplicateReport(Frozen):
    """What `find_duplicates` found."""

    distance: int
    compared: int
    groups: tuple[DuplicateGroup, ...]
    unreadable: tuple[Unreadable, ...]


@dataclass(frozen=True)
class _Picture:
    """What is compared of a picture; `order` tells which of a group is kept, the smallest."""

    folder: int
    path: str
    sha256: str
    size: tuple[int, int]
    bits: int
    colour: tuple[float, float, float]

    @property
    def order(self) -> tuple[int, int, str]:
        return self.folder, -self.size[0] * self.size[1], self.path


def find_duplicates(
    folders: Sequence[Path],
    *,
    distance: int = DEFAULT_DISTANCE,
    progress: Callable[[int], None] = lambda done: None,
) -> DuplicateReport:
    """Return groups of pictures that are the same up to `distance` bits (0 to 32) of their perceptual hash.

    In each group the first picture is kept: one of the folder named first, of those the largest, of those the first
    by name. `progress` hears of each file. Raises PreparationError when a folder is none or the distance is out of
    range.
    """
    if not 0 <= distance <= 32:
        raise PreparationError(f"the distance is 0 to 32 bits, not {distance}")
    for folder in folders:
        if not folder.is_dir():
            raise PreparationError(f"{folder} is no folder", hint="name folders of pictures")
    pictures: list[_Picture] = []
    unreadable = []
    for done, (place, path, problem) in enumerate(_files(folders), 1):
        try:
            if problem:
                raise PictureError(problem)
            pictures.append(_describe(folders, place, path))
        except PictureError as error:
            name = path.relative_to(folders[place]).as_posix()
            unreadable.append(Unreadable(folder=str(folders[place]), path=name, reason=error.message))
        progress(done)
    groups = [_group(folders, members) for members in _clusters(pictures, distance)]
    return DuplicateReport(
        distance=distance, compared=len(pictures), groups=tuple(groups), unreadable=tuple(unreadable)
    )


def move_duplicates(report: DuplicateReport) -> list[tuple[Path, Path]]:
    """Move all but the first picture of each group out of their folders; return (from, to) of each.

    A picture of FOLDER goes to FOLDER.duplicates beside it, under the path that it had. Nothing is deleted and nothing
    overwritten: where a file is in the way, the name gets a number.
    """
    moved = []
    for group in report.groups:
        for image in group.images[1:]:
            folder = Path(image.folder).absolute()
            source = folder / image.path
            wanted = folder.with_name(f"{folder.name}.duplicates") / image.path
            wanted.parent.mkdir(parents=True, exist_ok=True)
            target = next(path for path in _numbered(wanted) if not os.path.lexists(path))
            shutil.move(source, target)
            moved.append((source, target))
    return moved


def _numbered(path: Path) -> Iterator[Path]:
    yield path
    number = 1
    while True:
        yield path.with_name(f"{path.stem}.{number}{path.suffix}")
        number += 1


def _files(folders: Sequence[Path]) -> Iterator[tuple[int, Path, str]]:
    """Yield each regular file once, with the place of the folder that it was first found in, and what had a problem."""
    seen = set()
    for place, folder in enumerate(folders):
        for path, problem in files_below(folder):
            if problem:
                yield place, path, problem
            elif path.is_symlink() and not path.exists():
                yield place, path, "the link leads nowhere"
            elif path.is_file() and (real := path.resolve()) not in seen:
                seen.add(real)
                yield place, path, ""


def _describe(folders: Sequence[Path], place: int, path: Path) -> _Picture:
    picture = open_upright(path)
    small = np.asarray(picture.resize((8, 8), Image.Resampling.BOX), dtype=np.float64)
    red, green, blue = (float(value) for value in small.mean(axis=(0, 1)))
    bits = 0
    for bit in imagehash.phash(picture).hash.reshape(-1):
        bits = 2 * bits + int(bit)
    relative = path.relative_to(folders[place]).as_posix()
    return _Picture(place, relative, sha256_of(path), picture.size, bits, (red, green, blue))


def _clusters(pictures: Sequence[_Picture], distance: int) -> list[list[_Picture]]:
    """Return the connected components of at least two pictures, each with its kept picture first."""
    parent = list(range(len(pictures)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    for first, second in _pairs(pictures, distance):
        parent[root(first)] = root(second)
    clusters: dict[int, list[_Picture]] = {}
    for index, picture in enumerate(pictures):
        clusters.setdefault(root(index), []).append(picture)
    found = [sorted(members, key=lambda picture: picture.order) for members in clusters.values() if len(members) > 1]
    return sorted(found, key=lambda members: members[0].order)


def _pairs(pictures: Sequence[_Picture], distance: int) -> Iterator[tuple[int, int]]:
    first_of: dict[str, int] = {}
    for index, picture in enumerate(pictures):
        earlier = first_of.setdefault(picture.sha256, index)
        if earlier != index:
            yield earlier, index
    # Exact copies hang on their first already, so only those are compared with each other.
    indices = np.array(sorted(first_of.values()), dtype=np.int64)
    bits = np.array([pictures[index].bits for index in indices], dtype=np.uint64)
    colours = np.array([pictures[index].colour for index in indices], dtype=np.float64).reshape(-1, 3)
    for start in range(0, len(indices), _BLOCK):
        yield from _near(indices, bits, colours, start, distance)


def _near(
    indices: NDArray[np.int64], bits: NDArray[np.uint64], colours: NDArray[np.float64], start: int, distance: int
) -> Iterator[tuple[int, int]]:
    """Yield the near pairs whose first picture is in one block and whose second comes after it."""
    block = slice(start, start + _BLOCK)
    close = np.bitwise_count(bits[block, None] ^ bits[None, start:]) <= distance
    for row, column in zip(*np.nonzero(close), strict=True):
        first, second = start + row, start + column
        if first < second and np.abs(colours[first] - colours[second]).max() <= _COLOUR_DISTANCE:
            yield int(indices[first]), int(indices[second])


def _group(folders: Sequence[Path], members: Sequence[_Picture]) -> DuplicateGroup:
    kept = members[0]
    return DuplicateGroup(
        kind="exact" if len({picture.sha256 for picture in members}) == 1 else "near",
        across=len({picture.folder for picture in members}) > 1,
        images=tuple(
            DuplicateImage(
                folder=str(folders[picture.folder]),
                path=picture.path,
                sha256=picture.sha256,
                width=picture.size[0],
                height=picture.size[1],
                distance=(picture.bits ^ kept.bits).bit_count(),
            )
            for picture in members
        ),
    )
