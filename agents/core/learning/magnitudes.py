"""How large the values of an update may be, so that any updates of a round can be summed."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from bus.errors import FedbusError

FRACTION_BITS = 32
"""Binary digits after the point in the sum of updates, which has 64 of them: see ``fixed_point``."""
LARGEST_VALUE = 1024.0
"""No value of an update may be larger, whatever the sum could hold: training has no use for it.

A model that is off by this much can still be trained, with updates within this bound; one that is off by a hundred
times as much cannot (tried on the default task).
"""


class NonFiniteUpdateError(FedbusError):
    """An update has a NaN or an infinity."""

    code = "nonfinite"


class UpdateMagnitudeError(FedbusError):
    """A value of an update is larger than those of its round may be."""

    code = "magnitude"


def finite_largest(values: NDArray[np.float32]) -> float:
    """The largest absolute value.

    Raises:
        NonFiniteUpdateError: a value is NaN or infinite.
    """
    largest = largest_magnitude(values)
    if not math.isfinite(largest):
        raise NonFiniteUpdateError("the update has a NaN or an infinity")
    return largest


def value_bound(updates: int, weight: int) -> float:
    """The largest magnitude, a float32, that values may have so that no updates of a round overflow together.

    Args:
        updates: how many there are at most.
        weight: the largest that one of them can have.
    """
    # A little less than the sum holds: each update may add one half by rounding, and magnitudes are summed as floats.
    share = 2.0 ** (63 - FRACTION_BITS) * (1 - 2.0**-20) / (updates * max(1, weight))
    return min(LARGEST_VALUE, float(np.nextafter(np.float32(share), np.float32(0))))


def check_magnitude(values: NDArray[np.float32], largest: float) -> None:
    """Sees to it that no value is larger.

    Raises:
        NonFiniteUpdateError: one is NaN or infinite.
        UpdateMagnitudeError: one is larger.
    """
    if (found := finite_largest(values)) > largest:
        raise UpdateMagnitudeError(
            f"a value of the update has the magnitude {found:.6g}, the round takes up to {largest:.6g}"
        )


def largest_magnitude(values: NDArray[np.float32]) -> float:
    """The largest absolute value; NaN or infinity when any value is."""
    if values.size == 0:
        return 0.0
    # max and min propagate NaN and need no temporary array, unlike abs. A signalling NaN is no reason to warn.
    with np.errstate(invalid="ignore"):
        return max(float(values.max()), -float(values.min()), key=lambda v: math.inf if math.isnan(v) else v)
