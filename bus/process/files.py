"""Files that are written whole or not at all, files that only their owner may read, and digests of files."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import time
from pathlib import Path

_BLOCK = 1 << 20
_BEGAN = time.time()
_TEMPORARY = re.compile(r"\..+\.(\d{1,9})\.tmp")


def write_atomically(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Write a file so that a reader sees the old content or the new, never a part.

    Args:
        durable: so does whoever looks after a power cut; without it, a file that is written often costs less.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as stream:
            stream.write(content)
            if durable:
                stream.flush()
                os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hex, read block by block."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def write_private(path: Path, text: str) -> None:
    """Writes ``text`` to ``path`` in place of what is there; nobody else can read it at any moment."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    os.replace(temporary, path)


def remove_half_written(folder: Path) -> None:
    """Removes what processes that were killed in the middle of one of the writes above left in ``folder``."""
    for path in folder.glob(".*.tmp"):
        match = _TEMPORARY.fullmatch(path.name)
        with contextlib.suppress(OSError):
            if match is not None and not _writes(int(match.group(1)), path):
                path.unlink()


def _writes(pid: int, path: Path) -> bool:
    """Whether a process with this id may have the file in hand; in a container, every process has the same id."""
    if pid == os.getpid():
        return path.stat().st_mtime >= _BEGAN
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
