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
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from agents.core.learning.magnitudes import FRACTION_BITS, finite_largest
from bus.errors import FedbusError

MAX_WEIGHT = 2**29
"""Largest weight of an update: a 24-bit mantissa times this is exact in float64."""
_LIMIT = 2.0**63
# Values that are worked on at a time: few enough for a cache, enough that threads seldom wait for each other.
_BLOCK = 1 << 18
_THREADS = min(4, os.cpu_count() or 1)
_PARTS_OF_A_THREAD = 4
# Added to a float64 of up to 2**51, this rounds it to an integer, ties to even, whose bits are then the last ones.
_ROUNDER = 1.5 * 2.0**52
_ROUNDER_BITS = int(np.float64(_ROUNDER).view(np.int64))
Part = tuple[slice | NDArray[np.uint32], NDArray[np.float32]]
"""A piece of an update: its place (a slice, or distinct indices) and its values."""


class AggregationOverflowError(FedbusError):
    """The sum of the updates could leave 64 bits."""

    code = "aggregation_overflow"


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
        self._scratch = _aligned(_THREADS, max(1, min(size, _BLOCK)))

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
        self.add_update(_blocks(self._checked(delta)), weight)

    def add_update(self, parts: Sequence[Part], weight: int) -> None:
        """Adds one update that is read part by part, each of them once, and by several threads when it is large.

        Where something is wrong with it, what was added before that was found is read again and taken out, which
        integers make exact.

        Args:
            parts: the places, none of them twice, and float32 values of the update; what has no place is zero. A part
                may be decoded when it is asked for; threads ask for different parts at the same time.
            weight: as for ``add``, which see for the errors; those that reading a part raises pass through. Of
                several, that of the first part is raised.
        """
        self._magnitude_of(0.0, weight)
        shares = _in_threads(lambda share: self._take_in(parts, share, weight), len(parts))
        try:
            if failed := [(one.end, one.error) for one in shares if one.error is not None]:
                raise min(failed, key=lambda one: one[0])[1]
            magnitude = self._magnitude_of(max(one.largest for one in shares), weight)
            self._check_bound(self._magnitude + magnitude)
        except Exception:
            for one in shares:
                for index in range(one.share.start, one.end, one.share.step):
                    self._put(parts[index], weight, -1, self._scratch[0])
            raise
        self._magnitude += magnitude
        self.weight += weight
        self.updates += 1

    def remove(self, delta: NDArray[np.float32], weight: int) -> None:
        """Takes out an update that was added before; integers make this exact."""
        self.remove_update(_blocks(self._checked(delta)), weight)

    def remove_update(self, parts: Sequence[Part], weight: int) -> None:
        """As ``remove``, of one that ``add_update`` took in."""
        largest = 0.0
        for where, values in parts:
            found = finite_largest(values)
            self._accumulate(where, values, -weight, found, self._scratch[0])
            largest = max(largest, found)
        self._magnitude -= self._magnitude_of(largest, weight)
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

    def _take_in(self, parts: Sequence[Part], share: range, weight: int) -> _Taken:
        """Adds some of the parts, one after the other, up to the first that is wrong."""
        largest, index, scratch = 0.0, share.start, self._scratch[share.start]
        try:
            for index in share:
                largest = max(largest, self._put(parts[index], weight, 1, scratch))
        except Exception as error:
            return _Taken(share, index, largest, error)
        return _Taken(share, share.stop, largest, None)

    def _put(self, part: Part, weight: int, sign: int, scratch: NDArray[np.float64]) -> float:
        """Adds a part, or takes it out where ``sign`` is -1; returns the largest magnitude of its values.

        One that is past the bound by itself is left out both times: its update is going to be refused.
        """
        where, values = part
        largest = finite_largest(values)
        if self._magnitude + self._magnitude_of(largest, weight) < _LIMIT:
            self._accumulate(where, values, sign * weight, largest, scratch)
        return largest

    def _accumulate(
        self,
        where: slice | NDArray[np.uint32],
        values: NDArray[np.float32],
        weight: int,
        largest: float,
        scratch: NDArray[np.float64],
    ) -> None:
        factor = float(weight) * 2.0**FRACTION_BITS
        for start in range(0, len(values), _BLOCK):
            block = values[start : start + _BLOCK]
            product = scratch[: len(block)]
            rounded = product.view(np.int64)
            np.copyto(product, block)
            product *= factor
            if largest * abs(factor) < 2.0**51:
                product += _ROUNDER
                rounded -= _ROUNDER_BITS
            else:
                np.rint(product, out=product)
                np.copyto(rounded, product, casting="unsafe")
            if isinstance(where, slice):
                self._total[where.start + start : where.start + start + len(block)] += rounded
            else:
                self._total[where[start : start + _BLOCK]] += rounded


class _Taken(NamedTuple):
    """What a thread did with its share of the parts: all before ``end`` are in the sum, none from there on."""

    share: range
    end: int
    largest: float
    error: Exception | None


def _in_threads(work: Callable[[range], _Taken], parts: int) -> list[_Taken]:
    """Has all parts worked on, by one thread when they are few."""
    threads = min(_THREADS, parts // _PARTS_OF_A_THREAD)
    if threads < 2:
        return [work(range(parts))]
    with ThreadPoolExecutor(threads, "sum") as pool:
        return list(pool.map(work, [range(first, parts, threads) for first in range(threads)]))


def _aligned(rows: int, columns: int) -> NDArray[np.float64]:
    """Memory that begins with a cache line: the processor writes it faster than what numpy gives."""
    memory = np.empty(8 * rows * columns + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + 8 * rows * columns].view(np.float64).reshape(rows, columns)


def _blocks(delta: NDArray[np.float32]) -> list[Part]:
    places = [slice(start, min(start + _BLOCK, delta.size)) for start in range(0, delta.size, _BLOCK)]
    return [(place, delta[place]) for place in places]


def inputs_digest(inputs: Iterable[tuple[str, str, int]]) -> str:
    """SHA-256 over the sorted (user, update digest, weight) triples that make a model."""
    canonical = json.dumps(sorted(inputs), separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
