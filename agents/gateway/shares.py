"""Who waits at the gateway, by address: how a bounded number of places is shared by those who have proved nothing."""

from __future__ import annotations

import time
from typing import Generic, TypeVar

T = TypeVar("T")
LEAST_S = 1.0
"""Of a place, of which nobody is robbed by others from the same address."""


class Shares(Generic[T]):
    """Those who wait, in the order in which they came.

    Where there are too many, the one goes that has waited longest, of those from the address that has most. So who
    opens many connections keeps out his own address for a moment and nobody else.
    """

    def __init__(self) -> None:
        self._by_address: dict[str, dict[T, float]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._by_address.values()))

    def enter(self, one: T, address: str) -> None:
        """One waits from now on."""
        self._by_address.setdefault(address, {})[one] = time.monotonic()

    def leave(self, one: T, address: str) -> None:
        """It does not wait any more, if it did."""
        waiting = self._by_address.get(address, {})
        waiting.pop(one, None)
        if not waiting:
            self._by_address.pop(address, None)

    def held(self, address: str) -> int:
        """How many wait from this address."""
        return len(self._by_address.get(address, ()))

    def next_to_go(self, held: int, least_s: float) -> tuple[T, str, float] | None:
        """Who makes room for one more from an address that holds so many, his address, and in how many seconds.

        That is now, unless he would come from an address that has no more than the newcomer's then: each keeps its
        place against those for ``least_s`` seconds. Nothing where nobody waits.
        """
        if not self._by_address:
            return None
        address, most = max(self._by_address.items(), key=lambda item: len(item[1]))
        one, since = next(iter(most.items()))
        wait_s = 0.0 if len(most) > 1 + held else max(0.0, since + least_s - time.monotonic())
        return one, address, wait_s
