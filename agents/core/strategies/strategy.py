"""What a strategy is: its settings, what it gathers updates in, and the step that it takes from model to model.

A strategy is a frozen value whose fields are its settings. It must be a function of what it is given, so that every
aggregator, every replay and every check of the ledger comes to the same bits: no clock, no randomness but such as is
drawn from a setting, and no dependence on the order in which updates came.
"""

from __future__ import annotations

import contextlib
import errno
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from agents.core.learning.fixed_point import Part
from bus.errors import FedbusError
from bus.words.values import Frozen

BLOCK = 1 << 16
"""Coordinates that are looked at together."""
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.EIO)
"""What may be better the next time, and is no fault of the strategy."""


class StrategyBrokenError(FedbusError):
    """A strategy cannot make a round's model: with the same updates it will not do so another time either."""


class StrategyFailedError(StrategyBrokenError):
    """A strategy raised an exception."""

    code = "strategy_failed"


class StrategyResultError(StrategyBrokenError):
    """A strategy left a model, or vectors, of another shape or with values that are not finite."""

    code = "strategy_result"


@contextlib.contextmanager
def strategy_at_work(name: str, what: str) -> Iterator[None]:
    """Code of the strategy ``name`` runs in this block, which is called ``what``: whatever it raises is named as its.

    ``FedbusError`` goes through, and so does what a machine without room raises.

    Raises:
        StrategyFailedError: it raised something else, ``SystemExit`` included.
    """
    try:
        yield
    except (FedbusError, KeyboardInterrupt):
        raise
    except BaseException as error:
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            raise
        raise StrategyFailedError(
            f"strategy {name} raised in {what}: {type(error).__name__}: {error}"[:400],
            hint="correct the class, start dispatcher and aggregator again, and start another run",
        ) from error


def check_result(what: str, values: NDArray[np.float32], count: int) -> None:
    """Sees to it that what a strategy wrote can be trained from.

    Raises:
        StrategyResultError: it has another shape, or values that are not finite.
    """
    if values.shape != (count,) or values.dtype != np.float32:
        raise StrategyResultError(f"the strategy's {what} is {values.dtype} {values.shape}, not float32 ({count},)")
    for start in range(0, count, BLOCK):
        good = np.isfinite(values[start : start + BLOCK])
        if not good.all():
            raise StrategyResultError(f"the strategy's {what} is not finite at coordinate {start + int(good.argmin())}")


Vector = NDArray[np.float32]
"""One value a parameter, float32 [parameters]."""
Parts = Sequence[Part]
"""The places, none of them twice, and float32 values of an update, decoded as they are asked for; the rest is zero."""


class Gathering(Protocol):
    """What the updates of a round are gathered in while they arrive: in any order, each once."""

    @property
    def weight(self) -> int:
        """Sum of the weights of what was added."""

    def add(self, user: str, parts: Parts, weight: int) -> None:
        """Adds the update of ``user``, already clipped where the run clips.

        Nobody has looked for NaN and infinities yet; the two in ``agents.core.strategies.gathering`` do.

        Raises:
            FedbusError: it cannot be read or counted; nothing was added.
        """


G = TypeVar("G", bound=Gathering)


@dataclass(frozen=True)
class Step:
    """From one model to the next: what a strategy reads, and where it writes.

    Attributes:
        round: its number, from 1.
        parent: the model that the round started from.
        before: the strategy's vectors as the round before left them; none in the first round, or where the round
            starts from a model that is not that round's.
        model: where the new model goes; its values are undefined before.
        after: where the vectors go that the next round starts from; undefined before, too.
    """

    round: int
    parent: Vector
    before: Mapping[str, Vector] | None
    model: Vector
    after: Mapping[str, Vector]

    def blocks(self, width: int = BLOCK) -> Iterable[slice]:
        """All coordinates in pieces of ``width``, so that temporary arrays stay small."""
        return (slice(start, min(start + width, len(self.parent))) for start in range(0, len(self.parent), width))


class Strategy(Frozen, Generic[G]):
    """How accepted updates become the next model. Subclass it, give it a ``NAME``, and put it into this package.

    A class of your own elsewhere is named ``module:Class`` instead. Fields are settings: each has a default and bounds.
    """

    NAME: ClassVar[str] = ""
    VECTORS: ClassVar[tuple[str, ...]] = ()
    """Names of the vectors that the server keeps from round to round."""
    CLIPS: ClassVar[bool] = False
    """Whether updates are scaled down to a multiple of their median norm where the run says so (``clip_to_median``).

    They are gathered in a ``RunningMean`` then. A strategy that is robust by itself has no use for it.
    """

    @abstractmethod
    def gather(self, parameters: int) -> G:
        """What the updates of one round go into: see ``agents.core.strategies.gathering``."""

    @abstractmethod
    def step(self, gathered: G, step: Step) -> None:
        """Writes ``step.model`` and ``step.after``; called once, and only where the updates have any weight."""
