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
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from bus.errors import FedbusError

FRACTION_BITS = 32
MAX_WEIGHT = 2**29
"""Largest weight of an update: a 24-bit mantissa times this is exact in float64."""
_LIMIT = 2.0**63
_BLOCK = 1 << 15


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
        magnitude = self._checked_magnitude(delta, weight)
        self._accumulate(delta, weight)
        self._magnitude += magnitude
        self.weight += weight
        self.updates += 1

    def remove(self, delta: NDArray[np.float32], weight: int) -> None:
        """Takes out an update that was added before; integers make this exact."""
        magnitude = self._checked_magnitude(delta, weight, adding=False)
        self._accumulate(delta, -weight)
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

    def applied_to(self, parent: NDArray[np.float32]) -> NDArray[np.float32]:
        """The new model: ``parent`` plus the weighted mean of the updates, float32 [size].

        A round whose updates have no weight at all leaves the parent as it is.
        """
        if parent.shape != (self.size,):
            raise UpdateShapeError(f"the base model has {parent.size} parameters and the updates {self.size}")
        if self.weight == 0:
            return parent.astype(np.float32)
        model = np.empty(self.size, np.float32)
        divisor = float(self.weight) * 2.0**FRACTION_BITS
        for start in range(0, self.size, _BLOCK):
            block = slice(start, start + _BLOCK)
            model[block] = parent[block].astype(np.float64) + self._total[block] / divisor
        return model

    def _checked_magnitude(self, delta: NDArray[np.float32], weight: int, *, adding: bool = True) -> float:
        if delta.shape != (self.size,) or delta.dtype != np.float32:
            raise UpdateShapeError(f"an update has {self.size} float32 parameters, not {delta.shape} {delta.dtype}")
        if not 0 <= weight <= MAX_WEIGHT:
            raise AggregationOverflowError(f"an update's weight is 0 to {MAX_WEIGHT}, not {weight}")
        largest = largest_magnitude(delta)
        if not math.isfinite(largest):
            raise NonFiniteUpdateError("the update has a NaN or an infinity")
        # Rounding adds at most one half to each coordinate of each update.
        magnitude = largest * weight * 2.0**FRACTION_BITS + 1.0
        if adding:
            self._check_bound(self._magnitude + magnitude)
        return magnitude

    def _check_bound(self, magnitude: float) -> None:
        if magnitude >= _LIMIT:
            raise AggregationOverflowError(
                f"the updates' weighted sum could reach {magnitude / 2**FRACTION_BITS:.3g}, past 2**31",
                hint="bound the updates (max_update_norm) or weigh them with smaller numbers",
            )

    def _accumulate(self, delta: NDArray[np.float32], weight: int) -> None:
        factor = float(weight) * 2.0**FRACTION_BITS
        for start in range(0, self.size, _BLOCK):
            values = delta[start : start + _BLOCK]
            product, rounded = self._product[: len(values)], self._rounded[: len(values)]
            np.multiply(values, factor, out=product, dtype=np.float64)
            np.rint(product, out=product)
            np.copyto(rounded, product, casting="unsafe")
            self._total[start : start + _BLOCK] += rounded


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
