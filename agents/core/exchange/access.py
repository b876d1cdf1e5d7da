"""Who may do what at the gateway: join tokens, their roles and limits, without clocks, sockets or a bus."""

from __future__ import annotations

import contextlib
import hmac
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import get_args

from bus.errors import FedbusError
from bus.words.tokens import Role, TokenRecord, digest_of, id_of

ROLES: tuple[Role, ...] = get_args(Role)
"""From the least to the most: each may do what the ones before it may."""
FAILURES_REMEMBERED = 10_000
BURST_S = 2.0
UNGUESSABLE = 22
"""Characters of a join token from which on trying does not find it: 128 bits in base64."""
JOIN, OPEN = "join", "open"
"""Names of the grants that are no token of the operator's."""
_NOBODY = digest_of("")


class AccessRefusedError(FedbusError):
    """The token does not let its holder do this.

    Attributes:
        code: ``token`` when it is not valid (any more), ``role`` when its role is not enough, ``token_full`` when its
            holders have as many connections as they may, ``too_many_feeds`` when they watch as much as they may,
            ``too_many_failures`` when somebody guesses where it came from.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message, hint="ask the operator for a token: fedbus token create")
        self.code = code


class Pace:
    """A token bucket that makes its user wait and refuses nothing: ``rate`` units a second, ``BURST_S`` worth at once.

    Source: the token bucket of RFC 2697, with debt in place of dropping.
    """

    def __init__(self, rate: float | None) -> None:
        self._rate = rate
        self._ahead_s = 0.0
        self._at = 0.0

    def delay(self, cost: float, now: float) -> float:
        """Takes ``cost`` units at ``now`` seconds; answers how many seconds to wait before taking more."""
        if self._rate is None:
            return 0.0
        self._ahead_s = max(0.0, self._ahead_s - max(0.0, now - self._at)) + cost / self._rate
        self._at = now
        return max(0.0, self._ahead_s - BURST_S)


@dataclass
class Grant:
    """What all holders of one token share while any of them is there.

    Attributes:
        name: the token's id; ``JOIN`` for the token of the gateway's own settings, ``OPEN`` where none is needed.
        role: what they may do.
        clients: how many of them are connected.
        feeds: how many event feeds they read.
        pace: of the bytes that they send.
        on_end: called with the reason when the token ends before its holders do.
    """

    name: str
    role: Role
    max_clients: int | None = None
    pace: Pace = field(default_factory=lambda: Pace(None))
    clients: int = 0
    feeds: int = 0
    on_end: set[Callable[[str], None]] = field(default_factory=set)

    @contextlib.contextmanager
    def ending(self, tell: Callable[[str], None]) -> Iterator[None]:
        """Has ``tell`` called if the token ends before the block does."""
        self.on_end.add(tell)
        try:
            yield
        finally:
            self.on_end.discard(tell)

    @contextlib.contextmanager
    def watching(self, at_most: int) -> Iterator[None]:
        """One more of its holders reads a feed until the block ends.

        Raises:
            AccessRefusedError: ``at_most`` are read already.
        """
        if self.feeds >= at_most:
            raise AccessRefusedError("too_many_feeds", f"{at_most} feeds are read with this token already")
        self.feeds += 1
        try:
            yield
        finally:
            self.feeds -= 1

    def allows(self, role: Role) -> bool:
        """Whether its role is enough for what needs ``role``."""
        return ROLES.index(self.role) >= ROLES.index(role)

    def enter(self) -> None:
        """One more client connects.

        Raises:
            AccessRefusedError: there are as many as the token allows.
        """
        if self.max_clients is not None and self.clients >= self.max_clients:
            raise AccessRefusedError("token_full", f"{self.max_clients} clients are connected with this token already")
        self.clients += 1

    def leave(self) -> None:
        """One of its clients is gone."""
        self.clients -= 1


class AccessTable:
    """The tokens that the gateway knows.

    Args:
        join_token: one that is valid for ever, for training; empty for none.
        open_without: let everybody do everything as long as there is no token at all.
    """

    def __init__(self, join_token: str, *, open_without: bool) -> None:
        self._join = Grant(JOIN, "train")
        self._join_digest = digest_of(join_token) if join_token else ""
        self._join_can_be_guessed = len(join_token) < UNGUESSABLE
        self._open = Grant(OPEN, "admin") if open_without and not join_token else None
        self._records: dict[str, TokenRecord] = {}
        self._learned: dict[str, TokenRecord] = {}
        self._grants: dict[str, Grant] = {}

    @property
    def is_open(self) -> bool:
        """Nobody needs a token."""
        return self._open is not None and not self._records

    def check(self, token: str, role: Role, now: datetime, *, beside_guessers: bool = False) -> Grant:
        """The grant of a token that allows ``role``.

        Args:
            beside_guessers: many wrong tokens came from where this one did. A join token that could be guessed is not
                looked at then; for those that the operator made, nobody can try often enough.

        Raises:
            AccessRefusedError: the token is unknown, has ended, or its role is not enough.
        """
        grant = self._find(token, now, beside_guessers)
        if not grant.allows(role):
            raise AccessRefusedError("role", f"this token is for {grant.role}, and this needs {role}")
        return grant

    def update(self, records: Iterable[TokenRecord], now: datetime) -> None:
        """Takes the newest records in, and ends the grants of tokens that are not valid any more."""
        self._records = {record.id: record for record in records}
        # The records may have been read before another was learned of: no token is ever taken out of the stream.
        self._learned = {name: record for name, record in self._learned.items() if name not in self._records}
        self._records |= self._learned
        self._changed(now)

    def is_unknown(self, token: str) -> bool:
        """Whether it names an id that may be newer than the newest records."""
        return bool(id_of(token)) and id_of(token) not in self._records

    def learn(self, record: TokenRecord, now: datetime) -> None:
        """Takes one record in that the newest records do not have yet."""
        if record.id not in self._records:
            self._records[record.id] = self._learned[record.id] = record
            self._changed(now)

    def _changed(self, now: datetime) -> None:
        if self._open is not None and self._records:
            self._end(self._open, "a token is needed now")
        self.expire(now)

    def expire(self, now: datetime) -> None:
        """Ends the grants of tokens whose time is over."""
        for name, grant in list(self._grants.items()):
            record = self._records.get(name)
            ended = record.ended(now) if record is not None else "the token is gone"
            if ended is not None:
                del self._grants[name]
                self._end(grant, ended)

    def _find(self, token: str, now: datetime, beside_guessers: bool) -> Grant:
        if self._open is not None and not self._records:
            return self._open
        digest = digest_of(token)
        is_join = bool(self._join_digest) and hmac.compare_digest(digest, self._join_digest)
        if is_join and not (beside_guessers and self._join_can_be_guessed):
            return self._join
        record = self._records.get(id_of(token))
        # A hash is compared even where there is no such token: time tells nobody which ids exist.
        genuine = hmac.compare_digest(digest, record.sha256 if record is not None else _NOBODY)
        if record is None or not genuine:
            raise AccessRefusedError("token", "the join token is wrong" if token else "a join token is needed")
        if (ended := record.ended(now)) is not None:
            raise AccessRefusedError("token", ended)
        limits = record.limits
        return self._grants.setdefault(
            record.id, Grant(record.id, record.role, limits.clients, Pace(limits.bytes_per_s))
        )

    def _end(self, grant: Grant, reason: str) -> None:
        for tell in list(grant.on_end):
            tell(reason)


class Failures:
    """Counts wrong tokens by address, so that nobody learns much by trying.

    An address may fail ``limit`` times within ``window_s`` seconds; the newest ``FAILURES_REMEMBERED`` are remembered.
    """

    def __init__(self, limit: int, window_s: float = 60.0) -> None:
        self._limit = limit
        self._window_s = window_s
        self._seen: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def count(self, address: str, now: float) -> None:
        """One more wrong token came from this address."""
        since, times = self._seen.pop(address, (now, 0))
        self._seen[address] = (now, 1) if now - since >= self._window_s else (since, times + 1)
        while len(self._seen) > FAILURES_REMEMBERED:
            self._seen.popitem(last=False)

    def wait_s(self, address: str, now: float) -> float:
        """How long the address has to stay away; 0 when it may come."""
        since, times = self._seen.get(address, (now, 0))
        return max(0.0, since + self._window_s - now) if times >= self._limit else 0.0
