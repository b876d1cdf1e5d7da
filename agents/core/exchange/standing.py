"""How much is trusted to a client: by its name, and by the token that it came under whatever it calls itself."""

from __future__ import annotations

from collections import OrderedDict
from math import inf

from agents.core.exchange.messages import MAX_SLOTS

REMEMBERED = 4096
TOLERANCE = 4
"""Faults that halve what a token's holders may have together; each is one of some client among many."""


class Standing:
    """Counts faults: a task that was refused, was not done in its time, or whose update was rejected.

    Each update that counts takes one fault away. A client with ``n`` faults may hold ``MAX_SLOTS / 2**n`` tasks, at
    least one; a token's holders together ``most`` halved for each ``TOLERANCE`` faults, at least ``MAX_SLOTS``.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._names: OrderedDict[str, int] = OrderedDict()
        self._tokens: OrderedDict[str, int] = OrderedDict()
        self._worked: OrderedDict[str, float] = OrderedDict()

    def fault(self, client: str, token: str) -> None:
        """The client failed."""
        _change(self._names, client, 1)
        _change(self._tokens, token, 1)

    def credit(self, client: str, token: str, done_at: float) -> None:
        """An update of the client counts, which was there at ``done_at`` seconds."""
        self._worked.pop(client, None)
        self._worked[client] = done_at
        while len(self._worked) > REMEMBERED:
            self._worked.popitem(last=False)
        _change(self._names, client, -1)
        _change(self._tokens, token, -1)

    def worked_at(self, client: str) -> float:
        """When an update of the client counted last; negative infinity if that is not known."""
        return self._worked.get(client, -inf)

    def faults(self, client: str, token: str) -> int:
        """Of both together."""
        return self._names.get(client, 0) + self._tokens.get(token, 0)

    def of_client(self, client: str) -> int:
        """How many tasks it may hold."""
        return max(1, MAX_SLOTS >> self._names.get(client, 0))

    def of_token(self, token: str) -> int:
        """How many tasks its holders may have together."""
        return max(min(MAX_SLOTS, self._most), self._most >> (self._tokens.get(token, 0) // TOLERANCE))


def _change(faults: OrderedDict[str, int], who: str, by: int) -> None:
    count = faults.pop(who, 0) + by
    if count > 0:
        faults[who] = count
    while len(faults) > REMEMBERED:
        faults.popitem(last=False)
