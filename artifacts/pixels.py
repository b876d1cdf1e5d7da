"""Normalisation of uint8 pixels by a table, so that every engine feeds its model the same float32 bits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def pixel_table(mean: Sequence[float], std: Sequence[float]) -> NDArray[np.float32]:
    """Return float32 [C, 256]: entry [c, u] is (u/255 - mean[c]) / std[c], computed in float64 and rounded once.

    JavaScript computes the same bits from the same formula, because its numbers are float64 too.
    """
    values = np.arange(256, dtype=np.float64) / 255.0
    channels = zip(mean, std, strict=True)
    return np.stack([((values - m) / s) for m, s in channels]).astype(np.float32)


def to_pixel_values(images: NDArray[np.uint8], table: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return float32 [n, C, H, W], contiguous, of uint8 images [n, H, W, C], with a table [C, 256]."""
    planes = [table[channel][images[..., channel]] for channel in range(table.shape[0])]
    return np.stack(planes, axis=1)
