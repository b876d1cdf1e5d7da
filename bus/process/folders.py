"""Temporary folders that do not outlive their process for long, however it ends."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

log = logging.getLogger(__name__)
_PREFIX = "fedbus-tmp-"


@contextlib.contextmanager
def temporary_folder(purpose: str) -> Iterator[Path]:
    """A folder of this process's own, which is gone at the end of the block.

    Its owner holds a lock on it, which ends with the process whatever ends that: so whoever starts later can tell what
    nobody owns any more, and removes it.
    """
    remove_left_behind()
    folder, lock = _locked_folder(purpose)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def remove_left_behind() -> int:
    """Removes the temporary folders of this user's processes that are gone; answers how many those were."""
    removed = 0
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            # Neither followed as a link nor opened when it is somebody else's.
            if folder.lstat().st_uid != os.getuid():
                continue
            lock = _try_lock(folder)
            if lock is None:
                continue
            try:
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)
            removed += 1
    if removed:
        log.info("removed %d temporary folders of processes that are gone", removed)
    return removed


def _locked_folder(purpose: str) -> tuple[Path, int]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{purpose}-"))
        lock = _try_lock(folder)
        # Before it was locked, somebody may have taken it for left behind.
        if lock is not None and folder.exists():
            return folder, lock
        if lock is not None:
            os.close(lock)


def _try_lock(folder: Path) -> int | None:
    """The lock on a folder, or nothing: its owner lives, or it is gone or a link."""
    try:
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        return None
    return lock
