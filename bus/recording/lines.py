"""The lines of a recording, read within bounds: a small file cannot unfold to more than what it says it holds."""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

from pydantic import ValidationError

from bus.errors import MalformedRecordingError
from bus.words.values import Ref

PLAIN_LINE = 1 << 20
"""Bytes of a line: an event is smaller, however it is escaped. Only an object's line may be longer, for its bytes."""
MAX_LINE = 512 << 20
MAX_TOTAL = 4 << 30
_AROUND = 64
"""Bytes of an object's line after its base64: what closes it, and blanks that others may have written."""
_OBJECT = re.compile(rb'\s*\{\s*"ref"\s*:\s*(\{[^{}]{1,2000}\})\s*,\s*"base64"\s*:\s*"')


def numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The numbered lines of a recording.

    Raises:
        MalformedRecordingError: a line is cut off, longer than what it holds may be, or its compression is damaged.
        OSError: the file cannot be read.
    """
    number, total = 0, 0
    with cast(IO[bytes], gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb") as file:
        while True:
            number += 1
            try:
                line = file.readline(PLAIN_LINE + 1)
                if len(line) > PLAIN_LINE:
                    line = _whole(file, line)
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                raise malformed(path, number, f"the compression is damaged or cut off: {error}") from None
            except ValueError as error:
                raise malformed(path, number, str(error)) from None
            if not line:
                return
            total += len(line)
            if total > MAX_TOTAL:
                raise malformed(path, number, f"it is larger than {MAX_TOTAL} bytes in all")
            if not line.endswith(b"\n"):
                raise malformed(path, number, "the line is cut off")
            yield number, line


def _whole(file: IO[bytes], begun: bytes) -> bytes:
    """A long line to its end: an object, which says at its beginning how long it is.

    Raises:
        ValueError: it is none, or longer than it says.
    """
    found = _OBJECT.match(begun)
    if found is None:
        raise ValueError(f"it is larger than {PLAIN_LINE} bytes, and is no object")
    try:
        size = Ref.model_validate_json(found[1]).size
    except ValidationError:
        raise ValueError("the object has no valid reference") from None
    most = min(MAX_LINE, found.end() + 4 * -(-size // 3) + _AROUND)
    line = begun if begun.endswith(b"\n") else begun + file.readline(max(0, most + 1 - len(begun)))
    if len(line) > most:
        raise ValueError(f"it is larger than {most} bytes, which the object of {size} bytes may have")
    return line


def malformed(path: Path, line: int, cause: str) -> MalformedRecordingError:
    """The error about a line of a recording."""
    return MalformedRecordingError(f"{path.name}, line {line}: {cause}", hint="record the run again")
