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
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agents.core.learning.fixed_point import NonFiniteUpdateError, UpdateShapeError
from bus.errors import FedbusError

BLOCK = 1024
_CHUNK = 256 * BLOCK
_FRACTION = re.compile(r"topk:((?:0|1)(?:\.[0-9]{1,9})?)")
_HALF_MAX = 65504.0

Buffer = bytes | bytearray | memoryview | NDArray[np.uint8]


class UpdateSizeError(FedbusError):
    """An update has another number of bytes than its encoding takes."""

    code = "size"


class UnknownEncodingError(FedbusError):
    """No such encoding of updates exists."""

    code = "encoding"


@dataclass(frozen=True)
class _Encoding:
    kind: str
    fraction: float = 1.0

    def kept(self, n: int) -> int:
        return min(n, max(1, math.ceil(self.fraction * n - 1e-9)))


def _parse(encoding: str) -> _Encoding:
    if encoding in ("float32", "float16", "int8"):
        return _Encoding(encoding)
    match = _FRACTION.fullmatch(encoding)
    if match and 0 < (fraction := float(match[1])) <= 1:
        return _Encoding("topk", fraction)
    raise UnknownEncodingError(
        f"unknown encoding {encoding!r} of updates", hint="use float32, float16, int8 or topk:F with 0 < F <= 1"
    )


def encoded_size(encoding: str, n: int) -> int:
    """Bytes that an update of ``n`` parameters takes; every encoding's size is exact.

    Raises:
        UnknownEncodingError: the encoding has no such name.
    """
    parsed = _parse(encoding)
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
    parsed = _parse(encoding)
    if delta.ndim != 1 or delta.dtype != np.float32:
        raise UpdateShapeError(f"an update is a float32 vector, not {delta.dtype} {delta.shape}")
    if not np.isfinite(delta).all():
        raise NonFiniteUpdateError("the update has a NaN or an infinity")
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
        raise NonFiniteUpdateError(f"a value is past ±{_HALF_MAX:.0f} and does not fit float16", hint="use float32")
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


def decode_update(data: Buffer, encoding: str, size: int, *, clip_norm: float | None = None) -> NDArray[np.float32]:
    """The delta, float32 [size], that ``data`` encodes, scaled down to the L2 norm ``clip_norm`` where it is larger.

    Raises:
        UnknownEncodingError: the encoding has no such name.
        UpdateSizeError: ``data`` has another length than the encoding takes for ``size`` parameters.
        UpdateShapeError: indices of ``topk`` are not ascending or past the end.
        NonFiniteUpdateError: a value is NaN or infinite.
    """
    delta = np.zeros(size, np.float32)
    for where, values in clipped_parts(data, encoding, size, clip_norm):
        delta[where] = values
    return delta


def clipped_parts(
    data: Buffer, encoding: str, size: int, clip_norm: float | None
) -> Iterator[tuple[slice | NDArray[np.uint32], NDArray[np.float32]]]:
    """As ``decoded_parts``, with the whole update scaled down to the L2 norm ``clip_norm`` where it is larger.

    The factor is rounded to float32 towards zero, so that it does not hang on how a machine adds up the last digits of
    the norm. Source: the clipping of updates in McMahan et al., Learning Differentially Private Recurrent Language
    Models (2018), without its noise.

    Raises:
        FedbusError: what ``decode_update`` raises.
    """
    scale = 1.0
    if clip_norm is not None and (norm := update_norm(data, encoding, size)) > clip_norm:
        scale = float(np.nextafter(np.float32(clip_norm / norm), np.float32(0)))
    for where, values in decoded_parts(data, encoding, size):
        yield where, values if scale == 1.0 else (values * scale).astype(np.float32)


def update_norm(data: Buffer, encoding: str, size: int) -> float:
    """The L2 norm of the delta that ``data`` encodes, read part by part so that large updates need little memory.

    Raises:
        FedbusError: what ``decode_update`` raises.
    """
    total = 0.0
    for _, values in decoded_parts(data, encoding, size):
        wide = values.astype(np.float64)
        total += float(wide @ wide)
    return math.sqrt(total)


def decoded_parts(
    data: Buffer, encoding: str, size: int
) -> Iterator[tuple[slice | NDArray[np.uint32], NDArray[np.float32]]]:
    """Places in the delta and the finite values that belong there, about a megabyte at a time.

    Raises:
        FedbusError: what ``decode_update`` raises; nothing is yielded before the length is known to be right.
    """
    parsed = _parse(encoding)
    expected = encoded_size(encoding, size)
    raw = np.frombuffer(data, np.uint8)
    if len(raw) != expected:
        raise UpdateSizeError(f"{encoding} of {size} parameters takes {expected} bytes, the update has {len(raw)}")
    if parsed.kind == "topk":
        yield from _topk_parts(raw, size, parsed.kept(size))
        return
    scales_end = 4 * -(-size // BLOCK)
    for start in range(0, size, _CHUNK):
        stop = min(size, start + _CHUNK)
        if parsed.kind == "float32":
            values = raw[4 * start : 4 * stop].view("<f4")
        elif parsed.kind == "float16":
            values = raw[2 * start : 2 * stop].view("<f2").astype(np.float32)
        else:
            scales = raw[4 * (start // BLOCK) : 4 * -(-stop // BLOCK)].view("<f4")
            quantised = raw[scales_end + start : scales_end + stop].view(np.int8)
            with np.errstate(over="ignore", invalid="ignore"):
                values = quantised.astype(np.float32) * np.repeat(scales, BLOCK)[: stop - start]
        yield slice(start, stop), _finite(values)


def _topk_parts(
    raw: NDArray[np.uint8], size: int, kept: int
) -> Iterator[tuple[NDArray[np.uint32], NDArray[np.float32]]]:
    last = -1
    for start in range(0, kept, _CHUNK):
        stop = min(kept, start + _CHUNK)
        indices = raw[4 * start : 4 * stop].view("<u4")
        steps = np.diff(indices.astype(np.int64), prepend=last)
        last = int(indices[-1])
        if (steps <= 0).any() or last >= size:
            raise UpdateShapeError(f"the indices of an update ascend strictly from 0 to at most {size - 1}")
        yield indices, _finite(raw[4 * (kept + start) : 4 * (kept + stop)].view("<f4"))


def _finite(values: NDArray[np.float32]) -> NDArray[np.float32]:
    if not np.isfinite(values).all():
        raise NonFiniteUpdateError("the update has a NaN or an infinity")
    return values
