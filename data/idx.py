"""Reader of the IDX format, in which the MNIST family of datasets is published."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.errors import IdxError

_UNSIGNED_BYTE = 0x08
# The largest file of the MNIST family holds 60,000 images of 784 bytes; anything far beyond is not what it claims.
_MAX_BYTES = 256 * 1024 * 1024


def read_idx(path: Path, *, rank: int) -> NDArray[np.uint8]:
    """Return the uint8 array of the given rank stored in an IDX file, gzip-compressed when its name ends in .gz.

    Raises IdxError when the file is not IDX, holds another type or rank, or its length differs from its header.
    """
    try:
        if path.suffix == ".gz":
            with gzip.open(path, "rb") as stream:
                content = stream.read(_MAX_BYTES + 1)
        else:
            with path.open("rb") as stream:
                content = stream.read(_MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise IdxError(f"cannot read {path}: {error}") from error
    if len(content) > _MAX_BYTES:
        raise IdxError(f"{path} holds more than {_MAX_BYTES} bytes")
    header = 4 + 4 * rank
    if len(content) < header or content[:2] != b"\0\0":
        raise IdxError(f"{path} is not an IDX file")
    if content[2] != _UNSIGNED_BYTE or content[3] != rank:
        raise IdxError(f"{path} holds type {content[2]:#04x} of rank {content[3]}, expected bytes of rank {rank}")
    shape = struct.unpack(f">{rank}I", content[4:header])
    # A size of zero hides that the others leave what an array can have.
    if math.prod(shape) != len(content) - header or max(shape) > _MAX_BYTES:
        raise IdxError(f"{path} holds {len(content) - header} values, its header says {math.prod(shape)}")
    return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape).copy()
