"""Federated averaging in integer arithmetic: any order, any grouping, the same bits.

Floating-point sums depend on their order; integer sums do not. Each coordinate of an update counts as
``round(weight * value * 2**32)`` in a 64-bit integer, so updates may arrive in any order, partial sums may be merged
in any tree, and an update may be taken out again exactly. One division and one rounding to float32 end it.

The mean itself is FedAvg (McMahan et al. 2017, arXiv 1602.05629): the updates are deltas from the round's base model,
weighted by each user's number of examples.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from bus.errors import FedbusError

FRACTION_BITS = 32
MAX_WEIGHT = 2**29
"""Largest weight of an update: a 24-bit mantissa times this is exact in float64."""
_LIMIT = 2.0**63
_BLOCK = 1 << 15
Part = tuple[slice | NDArray[np.uint32], NDArray[np.float32]]
"""A piece of an update: its place (a slice, or distinct indices) and its values."""


class AggregationOverflowError(FedbusError):
    """The sum of the updates could leave 64 bits."""

    code = "aggregation_overflow"


class NonFiniteUpdateError(FedbusError):
    """An update has a NaN or an infinity."""

    code = "nonfinite"


class UpdateShapeError(FedbusError):
    """An update has another number of parameters than the model."""

    code = "shape"


class FixedPointSum:
    """The running weighted sum of updates: one int64 a parameter, whatever the number of updates.

    Attributes:
        size: parameters.
        weight: sum of the weights added so far.
        updates: number of updates added so far.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.weight = 0
        self.updates = 0
        self._total = np.zeros(size, np.int64)
        self._magnitude = 0.0
        self._product = np.empty(min(size, _BLOCK), np.float64)
        self._rounded = np.empty(min(size, _BLOCK), np.int64)

    def add(self, delta: NDArray[np.float32], weight: int) -> None:
        """Adds one update.

        Args:
            delta: float32 [size].
            weight: 0 to ``MAX_WEIGHT``, usually the user's number of examples.

        Raises:
            UpdateShapeError: ``delta`` has another shape or type.
            NonFiniteUpdateError: a value is NaN or infinite; nothing was added.
            AggregationOverflowError: the sum could leave 64 bits; nothing was added.
        """
        self.add_parts(lambda: [(slice(0, self.size), self._checked(delta))], weight)

    def add_parts(self, parts: Callable[[], Iterable[Part]], weight: int) -> None:
        """Adds one update that is read part by part, twice: once to look at all of it, once to add it.

        Args:
            parts: gives the places and float32 values of the update anew at each call; what has no place is zero.
            weight: as for ``add``, which see for the errors; those that ``parts`` raises pass through.
        """
        largest = max((self._largest(values) for _, values in parts()), default=0.0)
        magnitude = self._magnitude_of(largest, weight)
        self._check_bound(self._magnitude + magnitude)
        for where, values in parts():
            self._accumulate(where, values, weight)
        self._magnitude += magnitude
        self.weight += weight
        self.updates += 1

    def remove(self, delta: NDArray[np.float32], weight: int) -> None:
        """Takes out an update that was added before; integers make this exact."""
        magnitude = self._magnitude_of(self._largest(self._checked(delta)), weight)
        self._accumulate(slice(0, self.size), delta, -weight)
        self._magnitude -= magnitude
        self.weight -= weight
        self.updates -= 1

    def merge(self, other: FixedPointSum) -> None:
        """Adds the partial sum of another aggregator of the same round."""
        if other.size != self.size:
            raise UpdateShapeError(f"a partial sum of {other.size} parameters cannot join one of {self.size}")
        self._check_bound(self._magnitude + other._magnitude)
        self._total += other._total
        self._magnitude += other._magnitude
        self.weight += other.weight
        self.updates += other.updates

    def applied_to(self, parent: NDArray[np.float32], out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """The new model: ``parent`` plus the weighted mean of the updates, float32 [size].

        A round whose updates have no weight at all leaves the parent as it is.

        Args:
            out: where to write it, such as a memory-mapped file; a new array without it.
        """
        if parent.shape != (self.size,):
            raise UpdateShapeError(f"the base model has {parent.size} parameters and the updates {self.size}")
        model = np.empty(self.size, np.float32) if out is None else out
        divisor = float(self.weight) * 2.0**FRACTION_BITS
        for start in range(0, self.size, _BLOCK):
            block = slice(start, start + _BLOCK)
            if self.weight == 0:
                model[block] = parent[block]
            else:
                model[block] = parent[block].astype(np.float64) + self._total[block] / divisor
        return model

    def _checked(self, delta: NDArray[np.float32]) -> NDArray[np.float32]:
        if delta.shape != (self.size,) or delta.dtype != np.float32:
            raise UpdateShapeError(f"an update has {self.size} float32 parameters, not {delta.shape} {delta.dtype}")
        return delta

    def _largest(self, values: NDArray[np.float32]) -> float:
        largest = largest_magnitude(values)
        if not math.isfinite(largest):
            raise NonFiniteUpdateError("the update has a NaN or an infinity")
        return largest

    def _magnitude_of(self, largest: float, weight: int) -> float:
        """Bound on what an update adds to any coordinate of the sum, in units of the fraction's last bit."""
        if not 0 <= weight <= MAX_WEIGHT:
            raise AggregationOverflowError(f"an update's weight is 0 to {MAX_WEIGHT}, not {weight}")
        # Rounding adds at most one half to each coordinate of each update.
        return largest * weight * 2.0**FRACTION_BITS + 1.0

    def _check_bound(self, magnitude: float) -> None:
        if magnitude >= _LIMIT:
            raise AggregationOverflowError(
                f"the updates' weighted sum could reach {magnitude / 2**FRACTION_BITS:.3g}, past 2**31",
                hint="bound the updates (max_update_norm) or weigh them with smaller numbers",
            )

    def _accumulate(self, where: slice | NDArray[np.uint32], values: NDArray[np.float32], weight: int) -> None:
        factor = float(weight) * 2.0**FRACTION_BITS
        for start in range(0, len(values), _BLOCK):
            block = values[start : start + _BLOCK]
            product, rounded = self._product[: len(block)], self._rounded[: len(block)]
            np.multiply(block, factor, out=product, dtype=np.float64)
            np.rint(product, out=product)
            np.copyto(rounded, product, casting="unsafe")
            if isinstance(where, slice):
                self._total[where.start + start : where.start + start + len(block)] += rounded
            else:
                self._total[where[start : start + _BLOCK]] += rounded


def largest_magnitude(values: NDArray[np.float32]) -> float:
    """The largest absolute value; NaN or infinity when any value is."""
    if values.size == 0:
        return 0.0
    # max and min propagate NaN and need no temporary array, unlike abs.
    return max(float(values.max()), -float(values.min()), key=lambda v: math.inf if math.isnan(v) else v)


def inputs_digest(inputs: Iterable[tuple[str, str, int]]) -> str:
    """SHA-256 over the sorted (user, update digest, weight) triples that make a model."""
    canonical = json.dumps(sorted(inputs), separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
