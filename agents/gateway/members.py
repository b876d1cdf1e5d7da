"""The connected clients by name: who may come in, under which token, and who is shut out for a while."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

from agents.core.exchange.access import AccessRefusedError, Grant
from agents.core.exchange.leases import REMEMBERED
from agents.core.exchange.messages import ErrorMessage, Hello, ProtocolError
from agents.gateway.outbox import Outbox
from agents.gateway.settings import GatewaySettings


@dataclass
class Member:
    """One connected client; it counts under its token's grant until ``release``."""

    hello: Hello
    outbox: Outbox
    grant: Grant
    since: datetime = field(default_factory=lambda: datetime.now(UTC))
    _turn_out: Callable[[str], None] | None = None

    @property
    def name(self) -> str:
        """The client's own name."""
        return self.hello.client

    def count(self, turn_out: Callable[[str], None]) -> None:
        """Takes a place under the grant; ``turn_out`` is called with the reason when the token ends.

        Raises:
            AccessRefusedError: there is no place.
        """
        self.grant.enter()
        self._turn_out = turn_out
        self.grant.on_end.add(turn_out)

    def release(self) -> None:
        """Gives the place back; safe to repeat."""
        if self._turn_out is not None:
            self.grant.on_end.discard(self._turn_out)
            self.grant.leave()
            self._turn_out = None

    def dismiss(self, code: str, reason: str) -> None:
        """Says why, and closes the connection."""
        self.outbox.say(ErrorMessage(code=code, message=reason))
        self.outbox.close(1008, code)


class Members:
    """At most one connection for each name."""

    def __init__(self, settings: GatewaySettings) -> None:
        self._settings = settings
        self._members: dict[str, Member] = {}
        self._rejections: dict[str, tuple[int, float]] = {}

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[Member]:
        return iter(list(self._members.values()))

    def get(self, name: str) -> Member | None:
        """The client's connection, if there is one."""
        return self._members.get(name)

    def admit(self, member: Member, turn_out: Callable[[str], None]) -> Member | None:
        """Lets a client in; answers with the older connection of its name that it takes the place of.

        Raises:
            ProtocolError: it is shut out, its name is another token's, or the gateway or its token is full.
        """
        name = member.name
        count, until = self._rejections.get(name, (0, 0.0))
        if count >= self._settings.max_rejections and time.monotonic() < until:
            raise ProtocolError(
                "shut_out", "too many of this client's updates were rejected; come back later", fatal=True
            )
        older = self._members.get(name)
        if older is None and len(self._members) >= self._settings.max_clients:
            raise ProtocolError("full", "the gateway has as many clients as it takes", fatal=True)
        if older is not None:
            older.release()
        try:
            member.count(turn_out)
        except AccessRefusedError as error:
            raise ProtocolError(error.code, error.message, fatal=True) from None
        self._members[name] = member
        if older is not None:
            older.outbox.close(4001, "another connection has this client's name")
        return older

    def remove(self, member: Member) -> bool:
        """The connection is gone; false when a newer one had taken its place."""
        member.release()
        if self._members.get(member.name) is not member:
            return False
        del self._members[member.name]
        return True

    def count_rejection(self, name: str) -> bool:
        """Counts a rejected update; true when the client is shut out for it."""
        now = time.monotonic()
        count = self._rejections.get(name, (0, 0.0))[0] + 1
        if len(self._rejections) >= REMEMBERED:
            self._rejections = {other: entry for other, entry in self._rejections.items() if entry[1] > now}
        self._rejections[name] = (count, now + self._settings.shut_out_s)
        return count >= self._settings.max_rejections

    def forgive(self, name: str) -> None:
        """An update of this client was accepted: the rejected ones before do not count any more."""
        self._rejections.pop(name, None)
