"""Reads the bytes of an update, part by part, and takes nothing that is wrong; see ``encodings`` for the formats."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray

from agents.core.learning.clipping import clip_factor
from agents.core.learning.encodings import (
    BLOCK,
    HALF_MAX,
    Buffer,
    UpdateSizeError,
    encoded_size,
    not_finite,
    parse_encoding,
)
from agents.core.learning.fixed_point import Part, UpdateShapeError
from agents.core.learning.magnitudes import check_magnitude

# Values of a part. The norm is summed part by part, so its last bits hang on this.
_PART = 256 * BLOCK
_DECODED_AT_ONCE = 16 << 20
# Values whose squares are summed at a time: BLAS takes several threads for more, and then adds in another order.
_ROW = 8192


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
    data: Buffer,
    encoding: str,
    size: int,
    clip_norm: float | None = None,
    *,
    norm: float | None = None,
    largest: float | None = None,
    check: bool = True,
) -> Sequence[Part]:
    """The delta that ``data`` encodes, as places and finite values; each part is decoded when it is asked for.

    With ``clip_norm`` it is scaled down to that where its norm is larger: see ``agents.core.learning.clipping``. Unless
    the norm is known, all is read once for it and again by the reader. So that it is decoded only once, float16 and
    int8 of up to 16 M parameters become float32 in memory then; larger ones are decoded again.

    Threads may ask for different parts at the same time. No place is in two of them, and they ascend.

    Args:
        data: must not change as long as parts are read.
        norm: the L2 norm of what ``data`` encodes, if it is known.
        largest: the largest magnitude of a value, before it is scaled; none: any finite value.
        check: False leaves it to the reader to look for NaN and infinities, as ``FixedPointSum`` does anyway.

    Raises:
        FedbusError: what ``decode_update`` raises. Asking for a part may raise ``NonFiniteUpdateError``, and
            ``UpdateMagnitudeError``.
    """
    parts = _Parts(data, encoding, size, check=check, largest=largest)
    if clip_norm is not None:
        parts.clip(clip_norm, norm)
    return parts


def update_norm(data: Buffer, encoding: str, size: int, *, largest: float | None = None) -> float:
    """The L2 norm of the delta that ``data`` encodes, read part by part so that large updates need little memory.

    Its last digits hang on the kind of processor, and on nothing else: who has to agree on it, is told it.

    Raises:
        FedbusError: what ``decode_update`` raises.
        UpdateMagnitudeError: a value is larger than ``largest``.
    """
    return _Parts(data, encoding, size, check=True, largest=largest).norm()


class _Parts(Sequence[Part]):
    """An encoded update, decoded about a megabyte at a time."""

    def __init__(self, data: Buffer, encoding: str, size: int, *, check: bool, largest: float | None) -> None:
        parsed = parse_encoding(encoding)
        expected = encoded_size(encoding, size)
        self._raw = np.frombuffer(data, np.uint8)
        if len(self._raw) != expected:
            raise UpdateSizeError(
                f"{encoding} of {size} parameters takes {expected} bytes, the update has {len(self._raw)}"
            )
        self._kind = parsed.kind
        self._values = parsed.kept(size) if parsed.kind == "topk" else size
        self._scales = 4 * -(-size // BLOCK)
        self._check = check
        self._largest = largest
        self._factor: np.float32 | None = None
        if self._kind == "topk":
            _check_indices(self._raw[: 4 * self._values].view("<u4"), size)

    def __len__(self) -> int:
        return -(-self._values // _PART)

    @overload
    def __getitem__(self, index: int) -> Part: ...
    @overload
    def __getitem__(self, index: slice) -> list[Part]: ...
    def __getitem__(self, index: int | slice) -> Part | list[Part]:
        found = range(len(self))[index]
        return self._part(found) if isinstance(found, int) else [self._part(one) for one in found]

    def norm(self) -> float:
        """The L2 norm of all, which is found to be finite."""
        total = 0.0
        for _, values in map(self._decoded, range(len(self))):
            if self._largest is not None:
                check_magnitude(values, self._largest)
            # Squares of float32 do not leave float64: only what is not finite makes a sum that is not.
            square = _sum_of_squares(values)
            if not math.isfinite(square):
                raise not_finite()
            total += square
        self._check, self._largest = False, None
        return math.sqrt(total)

    def clip(self, limit: float, norm: float | None) -> None:
        """Scales all down to the norm ``limit`` if its own, ``norm`` where that is known, is larger."""
        if norm is None:
            self._keep_decoded()
            norm = self.norm()
        self._factor = clip_factor(norm, limit)

    def _keep_decoded(self) -> None:
        if self._kind in ("float16", "int8") and self._values <= _DECODED_AT_ONCE:
            whole = np.empty(self._values, np.float32)
            for where, values in map(self._decoded, range(len(self))):
                whole[where] = values
            self._kind, self._raw = "float32", whole.view(np.uint8)

    def _part(self, index: int) -> Part:
        where, values = self._decoded(index)
        if self._largest is not None:
            check_magnitude(values, self._largest)
        elif self._check and not np.isfinite(values).all():
            raise not_finite()
        return where, values if self._factor is None else values * self._factor

    def _decoded(self, index: int) -> Part:
        start, stop = index * _PART, min(self._values, (index + 1) * _PART)
        raw = self._raw
        match self._kind:
            case "float32":
                return slice(start, stop), raw[4 * start : 4 * stop].view("<f4")
            case "float16":
                return slice(start, stop), _decode_half(raw[2 * start : 2 * stop].view("<i2"))
            case "int8":
                scales = raw[4 * (start // BLOCK) : 4 * -(-stop // BLOCK)].view("<f4")
                quantised = raw[self._scales + start : self._scales + stop].view(np.int8)
                return slice(start, stop), _decode_int8(quantised, scales)
            case _:
                values = raw[4 * self._values :]
                return raw[4 * start : 4 * stop].view("<u4"), values[4 * start : 4 * stop].view("<f4")


def _sum_of_squares(values: NDArray[np.float32]) -> float:
    """In float64, infinite or NaN only where a value is; by one thread, so always in the same order."""
    with np.errstate(all="ignore"):
        wide = values.astype(np.float64)
        rows = wide[: len(wide) // _ROW * _ROW].reshape(-1, _ROW)
        rest = wide[rows.size :]
        return float(np.vecdot(rows, rows).sum() + np.vecdot(rest, rest))


def _decode_half(halves: NDArray[np.int16]) -> NDArray[np.float32]:
    """Half-precision floats from their bits, faster than numpy converts them.

    Shifted to where float32 has its exponent and fraction, with the sign spread before them taken off, the bits are the
    value less the difference of the exponents' biases. A product brings that back, and normalises what is subnormal.
    """
    bits = halves.astype(np.int32)
    bits <<= 13
    bits &= ~0x7000_1FFF
    values = bits.view(np.float32)
    values *= np.float32(2.0**112)
    # What has the largest exponent is no number past that of float16, but an infinity or NaN.
    if values.max() > HALF_MAX or values.min() < -HALF_MAX:
        raise not_finite()
    return values


def _decode_int8(quantised: NDArray[np.int8], scales: NDArray[np.float32]) -> NDArray[np.float32]:
    with np.errstate(over="ignore", invalid="ignore"):
        return quantised.astype(np.float32) * np.repeat(scales, BLOCK)[: len(quantised)]


def _check_indices(indices: NDArray[np.uint32], size: int) -> None:
    ascending = all(
        (part[1:] > part[:-1]).all()
        for part in (indices[start : start + _PART + 1] for start in range(0, len(indices), _PART))
    )
    if not ascending or (len(indices) and indices[-1] >= size):
        raise UpdateShapeError(f"the indices of an update ascend strictly from 0 to at most {size - 1}")
