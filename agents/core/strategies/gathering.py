"""What updates are gathered in: their running mean, or each by itself to be read block by block."""

from __future__ import annotations

import math
import os
import tempfile
import weakref
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from agents.core.learning.fixed_point import FixedPointSum
from agents.core.learning.magnitudes import NonFiniteUpdateError, largest_magnitude
from agents.core.strategies.strategy import Parts, Vector

BLOCK_BYTES = 16 << 20
"""Of one block of coordinates, over all updates."""


class RunningMean:
    """The weighted mean of the updates, one integer a parameter: see ``FixedPointSum``."""

    def __init__(self, parameters: int) -> None:
        self._sum = FixedPointSum(parameters)

    @property
    def weight(self) -> int:
        """Sum of the weights of what was added."""
        return self._sum.weight

    def add(self, user: str, parts: Parts, weight: int) -> None:
        """Adds one update; raises what ``FixedPointSum.add_update`` raises."""
        self._sum.add_update(parts, weight)

    def remove(self, parts: Parts, weight: int) -> None:
        """Takes out an update that was added, as if it had never been."""
        self._sum.remove_update(parts, weight)

    def added_to(self, parent: Vector, out: Vector) -> None:
        """Writes ``parent`` plus the mean, added in float64 and rounded to float32 once."""
        self._sum.applied_to(parent, out)

    def write(self, out: Vector) -> None:
        """Writes the mean itself, rounded to float32."""
        self._sum.applied_to(np.zeros(len(out), np.float32), out)


class EachUpdate:
    """Every update by itself, as float32 in one temporary file: memory does not grow with their number.

    An update without weight has no say and is not kept.

    Attributes:
        weights: of the updates that are kept, by user.
    """

    def __init__(self, parameters: int) -> None:
        self.weights: dict[str, int] = {}
        self._row_bytes = 4 * parameters
        self._rows: dict[str, int] = {}
        self._file = tempfile.TemporaryFile(prefix="fedbus-updates-")  # noqa: SIM115 - closed with this object
        weakref.finalize(self, self._file.close)

    @property
    def weight(self) -> int:
        """Sum of the weights of what was added."""
        return sum(self.weights.values())

    def add(self, user: str, parts: Parts, weight: int) -> None:
        """Keeps one update; raises what reading ``parts`` raises, and NonFiniteUpdateError."""
        start = len(self._rows) * self._row_bytes
        try:
            self._write(start, parts)
        except BaseException:
            self._file.truncate(start)
            raise
        if weight == 0:
            self._file.truncate(start)
            return
        self._rows[user] = len(self._rows)
        self.weights[user] = weight

    def blocks(self) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """Each block of coordinates and the values there, float32 [updates, width], by user in the order of names.

        May be read as often as a strategy needs.
        """
        rows = [row for _, row in sorted(self._rows.items())]
        parameters = self._row_bytes // 4
        width = max(1, BLOCK_BYTES // (4 * max(1, len(rows))))
        for start in range(0, parameters, width):
            stop = min(parameters, start + width)
            values = np.empty((len(rows), stop - start), "<f4")
            for row, into in zip(rows, values, strict=True):
                os.preadv(self._file.fileno(), [into.data], row * self._row_bytes + 4 * start)
            yield slice(start, stop), values

    def _write(self, start: int, parts: Parts) -> None:
        # What is past the old end reads as zero: that is what an encoding means where it has no value.
        self._file.truncate(start + self._row_bytes)
        row = np.memmap(self._file, "<f4", "r+", start, (self._row_bytes // 4,)) if self._row_bytes else np.empty(0)
        for where, values in parts:
            if not math.isfinite(largest_magnitude(values)):
                raise NonFiniteUpdateError("the update has a NaN or an infinity")
            row[where] = values
