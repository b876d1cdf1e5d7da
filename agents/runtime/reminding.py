"""Says why something is waited for: at once when it is news, and now and then while it stays so."""

from __future__ import annotations

import time
from collections.abc import Callable

REMIND_S = 10.0


class Reminder:
    """Passes a line on to ``say`` when it has not been said before, else once in ``REMIND_S`` seconds.

    Reasons may take turns, as those of several brokers do: what was said before is no news again, until ``over``.
    """

    def __init__(self, say: Callable[[str], object], clock: Callable[[], float] = time.monotonic) -> None:
        self._say = say
        self._clock = clock
        self._said: set[str] = set()
        self._said_at = 0.0

    def waits(self, line: str) -> None:
        """It is still waited for, and this is why."""
        if line not in self._said or self._clock() - self._said_at >= REMIND_S:
            self._said.add(line)
            self._said_at = self._clock()
            self._say(line)

    def over(self) -> None:
        """It has come: if it goes again, that is news."""
        self._said.clear()
