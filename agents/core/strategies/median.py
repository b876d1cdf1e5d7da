"""The median of the updates at each coordinate: up to half of the clients may send anything without moving it far.

Source: Yin et al., Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates (2018, arXiv 1803.01498),
algorithm 1, option I. As there, every update counts the same, whatever it says its weight is: a weight is a claim of
the client's, and a robust strategy does not believe it. An update without weight does not count at all.

With an odd number of updates the median is one of their values. With an even number it is half the sum of the two in
the middle, computed in float64 and rounded to float32. Zeros have no sign in it, so that no order shows. The new model
is parent plus median, added in float64 and rounded to float32.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from agents.core.strategies.gathering import EachUpdate
from agents.core.strategies.strategy import Step, Strategy, Vector


class Median(Strategy[EachUpdate]):
    """The coordinate-wise median; reads all updates, block by block."""

    NAME = "median"

    def gather(self, parameters: int) -> EachUpdate:
        """Each update by itself."""
        return EachUpdate(parameters)

    def step(self, gathered: EachUpdate, step: Step) -> None:
        """Parent plus median."""
        for block, values in gathered.blocks():
            step.model[block] = step.parent[block].astype(np.float64) + median_of(values)


def median_of(values: NDArray[np.float32]) -> Vector:
    """The median of each column of finite float32 [rows, columns], with at least one row; no zero in it is negative."""
    middle = len(values) // 2
    median: Vector
    if len(values) % 2:
        median = np.partition(values, middle, axis=0)[middle]
    else:
        low, high = np.partition(values, (middle - 1, middle), axis=0)[middle - 1 : middle + 1].astype(np.float64)
        median = ((low + high) / 2).astype(np.float32)
    median += np.float32(0)
    return median
