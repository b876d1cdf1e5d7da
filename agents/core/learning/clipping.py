"""How far one update may reach: a multiple of the norm that is usual in its round, and the factor that keeps it there.

Source of the clipping: McMahan et al., Learning Differentially Private Recurrent Language Models (2018), without its
noise. The limit is not a number that somebody has to know: it follows from the norms of the round itself, as in Andrew
et al., Differentially Private Learning with Adaptive Clipping (2021, arXiv 1905.03871), where it is a quantile of them.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np


def median_limit(norms: Iterable[float], multiple: float) -> float | None:
    """The L2 norm that updates of a round are scaled down to: ``multiple`` times the median of those that are not zero.

    A user whose images were all predicted right sends zeros, which say nothing about what is usual. Of an even number
    the larger of the two in the middle counts: a round of one or two updates has no minority, and clips nothing.
    None where all are zero.
    """
    moving = sorted(norm for norm in norms if norm > 0)
    return multiple * moving[len(moving) // 2] if moving else None


def clip_factor(norm: float, limit: float | None) -> np.float32 | None:
    """What brings an update of this norm down to ``limit``; none where it is within.

    Rounded to float32 towards zero, so that it does not hang on how a machine adds up the last digits of a norm.
    """
    if limit is None or norm <= limit:
        return None
    factor: np.float32 = np.nextafter(np.float32(limit / norm), np.float32(0))
    return factor
