"""Augmentation in integer arithmetic: every engine that follows these rules computes the same pixels, bit for bit.

The rules, for the copy ``c`` (1, 2, …; copy 0 is the original) of the shard's image ``i`` under a task's ``seed``:

1. Draws come from a counter-based generator in 32-bit unsigned arithmetic:
   ``draw(slot) = mix(mix(seed) + (1 + slot + 8 * (c + 64 * i)) * 0x9E3779B9)``, where ``mix`` is the ``lowbias32``
   finaliser of Chris Wellons' hash prospector. ``below(slot, n) = draw(slot) * n >> 32``.
2. Slots: 0 flip, 1 shift in x, 2 shift in y, 3 rotation, 4 zoom, 5 brightness, 6 contrast.
3. Each output pixel (x, y) looks up its source: ``dx = ±(2x - (W-1))`` (negated when flipped) and
   ``dy = 2y - (H-1)`` in half pixels; ``a = cos*zoom + 2**15 >> 16``, ``b = sin*zoom + 2**15 >> 16``; the source's
   position with 17 fractional bits is ``X = a*dx + b*dy + ((W-1) - 2*shift_x) << 16`` and
   ``Y = a*dy - b*dx + ((H-1) - 2*shift_y) << 16``.
4. The four neighbours (edge pixels repeat) are weighted by the upper 8 of those bits; ``sum + 2**15 >> 16`` rounds.
5. ``m`` is the floor of the mean of the result over all pixels and channels; then
   ``clamp(m + ((v - m) * gain + 128 >> 8) + offset)`` with ``gain = 256 ± contrast`` and ``offset = ± brightness``.

``>>`` is an arithmetic shift (floor). ``tests/vectors/augment.json`` holds cases that both implementations must match.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from agents.words.run_config import AugmentationSpec

MAX_SIDE = 1024
"""Largest height or width in pixels: positions then fit 32-bit signed integers in every engine."""
_GOLDEN = np.uint32(0x9E3779B9)
_FLIP, _SHIFT_X, _SHIFT_Y, _ROTATION, _ZOOM, _BRIGHTNESS, _CONTRAST = range(7)


def mix(x: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """The 32-bit finaliser ``lowbias32``: a bijection that spreads every input bit."""
    x = x ^ (x >> np.uint32(16))
    x = x * np.uint32(0x7FEB352D)
    x = x ^ (x >> np.uint32(15))
    x = x * np.uint32(0x846CA68B)
    return x ^ (x >> np.uint32(16))


def _below(seed: int, image: NDArray[np.int64], copy: NDArray[np.int64], slot: int, n: int) -> NDArray[np.int64]:
    counter = (1 + slot + 8 * (copy + 64 * image)).astype(np.uint32)
    drawn = mix(mix(np.full(1, seed, np.uint32)) + counter * _GOLDEN)
    return ((drawn.astype(np.uint64) * np.uint64(n)) >> np.uint64(32)).astype(np.int64)


def augment(
    images: NDArray[np.uint8], indices: NDArray[np.int64], *, copies: int, seed: int, spec: AugmentationSpec
) -> NDArray[np.uint8]:
    """The training batches of some images: the original and its augmented copies.

    Args:
        images: uint8 [n, height, width, channels], the whole shard.
        indices: which of them, [k]; an image's draws depend on its place in the shard, not on the selection.
        copies: augmented copies of each image beside the original, 0 to 63.
        seed: the task's key, 32 bits.
        spec: ranges and tables.

    Returns:
        uint8 [k, 1 + copies, height, width, channels]; [:, 0] are the originals.

    Raises:
        ValueError: a side is longer than ``MAX_SIDE`` or ``copies`` is out of range.
    """
    _, height, width, channels = images.shape
    if max(height, width) > MAX_SIDE or not 0 <= copies <= 63:
        raise ValueError(f"sides up to {MAX_SIDE} and up to 63 copies, not {height}x{width} and {copies}")
    out = np.empty((len(indices), 1 + copies, height, width, channels), np.uint8)
    out[:, 0] = images[indices]
    if copies == 0 or len(indices) == 0:
        return out
    image = np.repeat(indices.astype(np.int64), copies)
    copy = np.tile(np.arange(1, copies + 1, dtype=np.int64), len(indices))

    def draw(slot: int, n: int) -> NDArray[np.int64]:
        return _below(seed, image, copy, slot, n)

    sign = 1 - 2 * draw(_FLIP, 2) if spec.flip else np.ones_like(image)
    shift_x = draw(_SHIFT_X, 2 * spec.shift + 1) - spec.shift
    shift_y = draw(_SHIFT_Y, 2 * spec.shift + 1) - spec.shift
    rotation = draw(_ROTATION, len(spec.cos))
    zoom = np.asarray(spec.inverse_scale, np.int64)[draw(_ZOOM, len(spec.inverse_scale))]
    offset = draw(_BRIGHTNESS, 2 * spec.brightness + 1) - spec.brightness
    gain = 256 + draw(_CONTRAST, 2 * spec.contrast + 1) - spec.contrast
    a = (np.asarray(spec.cos, np.int64)[rotation] * zoom + (1 << 15)) >> 16
    b = (np.asarray(spec.sin, np.int64)[rotation] * zoom + (1 << 15)) >> 16

    warped = _warp(images, image, a, b, sign, shift_x, shift_y)
    mean = warped.sum(axis=(1, 2, 3), dtype=np.int64) // (height * width * channels)
    toned = _per_image(mean) + (((warped - _per_image(mean)) * _per_image(gain) + 128) >> 8) + _per_image(offset)
    out[:, 1:] = np.clip(toned, 0, 255).astype(np.uint8).reshape(len(indices), copies, height, width, channels)
    return out


def _per_image(values: NDArray[np.int64]) -> NDArray[np.int32]:
    return values.astype(np.int32).reshape(-1, 1, 1, 1)


def _warp(
    images: NDArray[np.uint8],
    image: NDArray[np.int64],
    a: NDArray[np.int64],
    b: NDArray[np.int64],
    sign: NDArray[np.int64],
    shift_x: NDArray[np.int64],
    shift_y: NDArray[np.int64],
) -> NDArray[np.int32]:
    """Rotated, zoomed, flipped and shifted copies, int32 [n, height, width, channels] in 0..255."""
    _, height, width, _ = images.shape
    dx = sign[:, None, None] * (2 * np.arange(width) - (width - 1))[None, None, :]
    dy = (2 * np.arange(height) - (height - 1))[None, :, None]
    a, b = a[:, None, None], b[:, None, None]
    x = a * dx + b * dy + (((width - 1) - 2 * shift_x) << 16)[:, None, None]
    y = a * dy - b * dx + (((height - 1) - 2 * shift_y) << 16)[:, None, None]
    x0, fx = x >> 17, ((x >> 9) & 255).astype(np.int32)[..., None]
    y0, fy = y >> 17, ((y >> 9) & 255).astype(np.int32)[..., None]
    left, right = np.clip(x0, 0, width - 1), np.clip(x0 + 1, 0, width - 1)
    top, bottom = np.clip(y0, 0, height - 1), np.clip(y0 + 1, 0, height - 1)
    which = image[:, None, None]
    pixels = images.astype(np.int32)
    upper = pixels[which, top, left] * (256 - fx) + pixels[which, top, right] * fx
    lower = pixels[which, bottom, left] * (256 - fx) + pixels[which, bottom, right] * fx
    blended: NDArray[np.int32] = (upper * (256 - fy) + lower * fy + (1 << 15)) >> 16
    return blended


def default_augmentation() -> AugmentationSpec:
    """The ranges of the default task: flips, 2 pixels, ±10 degrees, ±10 % zoom, some brightness and contrast."""
    one = 1 << 16
    degrees = np.deg2rad(np.arange(-10, 11))
    return AugmentationSpec(
        cos=tuple(round(float(value)) for value in np.cos(degrees) * one),
        sin=tuple(round(float(value)) for value in np.sin(degrees) * one),
        inverse_scale=tuple(round(one * 100 / percent) for percent in range(90, 111)),
    )
