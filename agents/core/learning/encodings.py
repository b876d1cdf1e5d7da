"""The encodings of an update: how the delta of the trainable parameters travels as bytes.

An update is the float32 vector ``trained - base`` of ``n`` values in the order of the manifest. All numbers are
little-endian, there is no header (``n`` and the encoding are known from the round), and the same delta always gives
the same bytes.

``float32``
    ``n`` float32. Exact. Size ``4 n``.
``float16``
    ``n`` IEEE 754 half-precision floats, each rounded to nearest, ties to even; values past ±65504 cannot be encoded.
    Size ``2 n``.
``int8``
    Blocks of ``BLOCK`` = 1024 values (the last may be shorter). First one float32 scale a block, then one int8 a
    value. ``scale = float32(max |value| / 127)``; ``q = value / scale`` in float64, rounded to nearest with ties to
    even and clamped to ±127, or 0 when the scale is 0; a value decodes to ``float32(q * scale)``.
    Size ``4 ceil(n / 1024) + n``.
``topk:F``
    The ``k = max(1, ceil(F n - 1e-9))`` values of largest magnitude (of equals, those with the lower index), F in
    0 < F <= 1: ``k`` uint32 indices in strictly ascending order, then their ``k`` float32 values. All others decode
    to 0. Size ``8 k``.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agents.core.learning.fixed_point import UpdateShapeError
from agents.core.learning.magnitudes import NonFiniteUpdateError
from bus.errors import FedbusError

BLOCK = 1024
HALF_MAX = 65504.0
_FRACTION = re.compile(r"topk:((?:0|1)(?:\.[0-9]{1,9})?)")

Buffer = bytes | bytearray | memoryview | NDArray[np.uint8]


class UpdateSizeError(FedbusError):
    """An update has another number of bytes than its encoding takes."""

    code = "size"


class UnknownEncodingError(FedbusError):
    """No such encoding of updates exists."""

    code = "encoding"


@dataclass(frozen=True)
class Encoding:
    """An encoding's kind and, of ``topk``, the fraction of the values that it keeps."""

    kind: str
    fraction: float = 1.0

    def kept(self, n: int) -> int:
        """How many of ``n`` values it keeps."""
        return min(n, max(1, math.ceil(self.fraction * n - 1e-9)))


def parse_encoding(encoding: str) -> Encoding:
    """What an encoding's name says.

    Raises:
        UnknownEncodingError: the encoding has no such name.
    """
    if encoding in ("float32", "float16", "int8"):
        return Encoding(encoding)
    match = _FRACTION.fullmatch(encoding)
    if match and 0 < (fraction := float(match[1])) <= 1:
        return Encoding("topk", fraction)
    raise UnknownEncodingError(
        f"unknown encoding {encoding!r} of updates", hint="use float32, float16, int8 or topk:F with 0 < F <= 1"
    )


def encoded_size(encoding: str, n: int) -> int:
    """Bytes that an update of ``n`` parameters takes; every encoding's size is exact.

    Raises:
        UnknownEncodingError: the encoding has no such name.
    """
    parsed = parse_encoding(encoding)
    match parsed.kind:
        case "float32":
            return 4 * n
        case "float16":
            return 2 * n
        case "int8":
            return 4 * -(-n // BLOCK) + n
        case _:
            return 8 * parsed.kept(n)


def encode_update(delta: NDArray[np.float32], encoding: str) -> bytes:
    """The bytes of ``delta``, float32 [n].

    Raises:
        UnknownEncodingError: the encoding has no such name.
        UpdateShapeError: ``delta`` is no float32 vector.
        NonFiniteUpdateError: a value is NaN, infinite, or too large for float16.
    """
    parsed = parse_encoding(encoding)
    if delta.ndim != 1 or delta.dtype != np.float32:
        raise UpdateShapeError(f"an update is a float32 vector, not {delta.dtype} {delta.shape}")
    if not np.isfinite(delta).all():
        raise not_finite()
    match parsed.kind:
        case "float32":
            return delta.astype("<f4").tobytes()
        case "float16":
            return _encode_half(delta)
        case "int8":
            return _encode_int8(delta)
        case _:
            return _encode_topk(delta, parsed.kept(len(delta)))


def _encode_half(delta: NDArray[np.float32]) -> bytes:
    with np.errstate(over="ignore"):
        halves = delta.astype("<f2")
    if not np.isfinite(halves).all():
        raise NonFiniteUpdateError(f"a value is past ±{HALF_MAX:.0f} and does not fit float16", hint="use float32")
    return halves.tobytes()


def _encode_int8(delta: NDArray[np.float32]) -> bytes:
    blocks = -(-len(delta) // BLOCK)
    padded = np.zeros(blocks * BLOCK, np.float64)
    padded[: len(delta)] = delta
    rows = padded.reshape(blocks, BLOCK)
    scales = (np.abs(rows).max(axis=1, initial=0.0) / 127.0).astype("<f4")
    divisors = np.where(scales > 0, scales, np.inf).astype(np.float64)
    quantised = np.clip(np.rint(rows / divisors[:, None]), -127, 127).astype(np.int8)
    return bytes(scales.tobytes() + quantised.reshape(-1)[: len(delta)].tobytes())


def _encode_topk(delta: NDArray[np.float32], kept: int) -> bytes:
    if kept == 0:
        return b""
    magnitude = np.abs(delta)
    threshold = np.partition(magnitude, len(delta) - kept)[len(delta) - kept]
    above = np.flatnonzero(magnitude > threshold)
    ties = np.flatnonzero(magnitude == threshold)[: kept - len(above)]
    indices = np.sort(np.concatenate([above, ties]))
    return bytes(indices.astype("<u4").tobytes() + delta[indices].astype("<f4").tobytes())


def not_finite() -> NonFiniteUpdateError:
    """What an update with such a value is refused with."""
    return NonFiniteUpdateError("the update has a NaN or an infinity")
