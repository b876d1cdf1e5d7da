"""Prepares pictures into a dataset folder: part by part, so that a second run goes on where the first one stopped."""

from __future__ import annotations

import contextlib
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from data.class_names import ClassLookup
from data.dataset import (
    MANIFEST_NAME,
    MAX_ID,
    MAX_SOURCE,
    DatasetManifest,
    ImageEntry,
    ImageFormat,
    Part,
    SkippedEntry,
    read_manifest,
    write_manifest,
    write_part,
)
from data.errors import PictureError, PreparationError
from data.files import files_below, printable
from data.pictures import Resizing, read_picture

JOURNAL_NAME = "manifest.partial.json"
"""What is done so far while a preparation is under way; it becomes the manifest at the end."""
FLUSH_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True)
class Source:
    """A picture to prepare: a name that is unique in the dataset, the class it is known to have, and how to open it."""

    name: str
    label: str | None
    open: Callable[[], contextlib.AbstractContextManager[Path | IO[bytes]]]


@dataclass(frozen=True)
class Target:
    """What pictures are prepared to; without `classes`, the labels that occur become the classes."""

    image: ImageFormat
    resizing: Resizing
    classes: tuple[str, ...] | None = None
    name: str = "pictures"
    licence: str = "unknown"


def prepare(
    sources: Sequence[Source],
    directory: Path,
    target: Target,
    *,
    progress: Callable[[int], None] = lambda done: None,
) -> DatasetManifest:
    """Write the sources' pictures into a dataset folder and return its manifest; `progress` hears of each source.

    Sources that the folder already holds are left out; those that were skipped before are tried again. What cannot be
    read is listed as skipped. After an interruption at any point nothing that a part holds is lost. Where the folder
    holds an image of which there is no source any more, all are prepared anew.

    Raises PreparationError when the folder holds images of another format or other classes.
    """
    directory.mkdir(parents=True, exist_ok=True)
    begun = _begun(directory, target)
    if begun is not None and not {entry.source for entry in begun.images} <= {source.name for source in sources}:
        _clear(directory, begun)
        begun = None
    work = _Work(directory, target, begun)
    known = {entry.source for entry in work.entries}
    try:
        for done, source in enumerate(sources, 1):
            if source.name not in known:
                work.take(source)
            progress(done)
    finally:
        # Also when interrupted: what has been read is kept.
        work.flush()
    manifest = work.manifest()
    write_manifest(directory / MANIFEST_NAME, manifest)
    (directory / JOURNAL_NAME).unlink(missing_ok=True)
    return manifest


def folder_sources(folder: Path, *, leave_out: Path | None = None) -> list[Source]:
    """Return the files below a folder, by name; each is labelled with the name of the folder that it lies in.

    Files that lie directly in `folder` have no label. What lies below `leave_out`, as a dataset that was written into
    the folder itself, is no picture of it. Raises PreparationError when there is no folder.
    """
    if not folder.is_dir():
        raise PreparationError(f"{folder} is no folder", hint="name a folder of pictures")
    found = ((path.relative_to(folder), path, problem) for path, problem in files_below(folder, leave_out=leave_out))
    return [
        Source(printable(relative.as_posix()), printable(relative.parent.name) or None, _opener(path, problem))
        for relative, path, problem in found
    ]


def labelled_as(sources: Iterable[Source], classes: Sequence[str]) -> tuple[list[Source], dict[str, tuple[str, ...]]]:
    """Return the sources with classes for labels, and the labels that mean no single class, with those they could mean.

    A label is a class by its name, in any case; a source with another one has none then.
    """
    lookup = ClassLookup(classes)
    known, unclear = [], {}
    for source in sources:
        found = () if source.label is None else lookup.find(source.label)
        if source.label is not None and len(found) != 1:
            unclear[source.label] = found
        known.append(replace(source, label=found[0] if len(found) == 1 else None))
    return known, dict(sorted(unclear.items()))


def _opener(path: Path, problem: str) -> Callable[[], contextlib.AbstractContextManager[Path | IO[bytes]]]:
    @contextlib.contextmanager
    def open_file() -> Iterator[Path | IO[bytes]]:
        if problem:
            raise PictureError(problem)
        try:
            mode = path.stat().st_mode
        except OSError as error:
            raise PictureError(f"cannot be read: {error.strerror}") from error
        # A pipe or a device would block for ever.
        if not stat.S_ISREG(mode):
            raise PictureError("not a regular file")
        if path.stat().st_size == 0:
            raise PictureError("empty file")
        yield path

    return open_file


def _begun(directory: Path, target: Target) -> DatasetManifest | None:
    """Return what an earlier run left, if anything."""
    found = [path for path in (directory / JOURNAL_NAME, directory / MANIFEST_NAME) if path.exists()]
    if not found:
        return None
    begun = read_manifest(found[0])
    if begun.image != target.image or (target.classes is not None and begun.classes != target.classes):
        raise PreparationError(
            f"{directory} holds images of {begun.image.size} pixels, {begun.image.channels} channels and "
            f"{len(begun.classes)} classes, which differ from what is asked for",
            hint="write to another folder",
        )
    return begun


def _clear(directory: Path, begun: DatasetManifest) -> None:
    """Remove what an earlier run wrote: what names the parts first, so that nobody finds it without them."""
    for name in (MANIFEST_NAME, JOURNAL_NAME, *(part.path for part in begun.parts)):
        (directory / name).unlink(missing_ok=True)


@dataclass
class _Work:
    """A preparation under way: what is on disk, and the images that wait for the next part."""

    directory: Path
    target: Target
    begun: DatasetManifest | None
    entries: list[ImageEntry] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)
    skipped: list[SkippedEntry] = field(default_factory=list)
    waiting: list[NDArray[np.uint8]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.begun is not None:
            self.entries, self.parts = list(self.begun.images), list(self.begun.parts)

    def take(self, source: Source) -> None:
        """Read one source's picture, or note why it gives none."""
        try:
            if not 0 < len(source.name) <= MAX_ID:
                raise PictureError(f"a name of {len(source.name)} characters, where 1 to {MAX_ID} can be kept")
            with source.open() as opened:
                image = read_picture(opened, self.target.image, self.target.resizing)
        except PictureError as error:
            self.skipped.append(SkippedEntry(source=source.name[:MAX_SOURCE], reason=error.message))
            return
        self.entries.append(ImageEntry(id=source.name, source=source.name, label=source.label))
        self.waiting.append(image)
        if len(self.waiting) * self.target.image.bytes >= FLUSH_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write the waiting images as a part, and then that they are written."""
        if self.waiting:
            first = len(self.entries) - len(self.waiting)
            self.parts.append(write_part(self.directory, len(self.parts), first, np.stack(self.waiting)))
            self.waiting = []
            write_manifest(self.directory / JOURNAL_NAME, self.manifest())

    def manifest(self) -> DatasetManifest:
        """Return the manifest of what is on disk."""
        classes = self.target.classes
        if classes is None:
            classes = tuple(sorted({entry.label for entry in self.entries if entry.label is not None}))
        return DatasetManifest(
            name=self.target.name,
            licence=self.target.licence,
            notice="",
            image=self.target.image,
            classes=classes,
            images=tuple(self.entries),
            skipped=tuple(self.skipped),
            parts=tuple(self.parts),
        )
