"""The files below a folder in a fixed order, also behind links to folders, and what keeps one from being read."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple


class Found(NamedTuple):
    """A file, or a folder that could not be entered, which `problem` says why."""

    path: Path
    problem: str = ""


def files_below(folder: Path, *, leave_out: Path | None = None) -> Iterator[Found]:
    """Yield the files below a folder by name, each folder's own before those of its folders.

    Links to folders are followed, but for one to a folder that it lies in itself. What lies below `leave_out` is not
    there.
    """
    yield from _below(folder, leave_out.resolve() if leave_out else None, ())


def printable(name: str) -> str:
    """Return a file name without the stand-ins for bytes that are not UTF-8, which no terminal takes."""
    return name.encode("utf-8", "backslashreplace").decode()


def some_of(names: Sequence[str], shown: int = 5) -> str:
    """Return the first names, in words, and how many more there are."""
    more = len(names) - shown
    return ", ".join(map(printable, names[:shown])) + (f" and {more} more" if more > 0 else "")


def _below(folder: Path, leave_out: Path | None, inside: tuple[Path, ...]) -> Iterator[Found]:
    real = folder.resolve()
    if real == leave_out:
        return
    if real in inside:
        yield Found(folder, "a link to a folder that it lies in")
        return
    try:
        with os.scandir(folder) as scan:
            entries = sorted(scan, key=lambda entry: entry.name)
    except OSError as error:
        yield Found(folder, f"a folder that cannot be read: {error.strerror}")
        return
    folders = [entry for entry in entries if _is_folder(entry)]
    yield from (Found(Path(entry.path)) for entry in entries if entry not in folders)
    for entry in folders:
        yield from _below(Path(entry.path), leave_out, (*inside, real))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        # A link to itself, or to what nobody may look at, is told as a file that cannot be read.
        return False
