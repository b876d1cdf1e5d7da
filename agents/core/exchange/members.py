"""The connected clients by name: who may come in, under which token, and who is shut out for a while."""

from __future__ import annotations

from collections.abc import Iterator

from agents.core.exchange.access import AccessRefusedError, Grant
from agents.core.exchange.connections import Connection
from agents.core.exchange.leases import REMEMBERED
from agents.core.exchange.limits import Limits
from agents.core.exchange.messages import Hello, ProtocolError

Who = str | tuple[str, str]
"""A client's name, or a token and the address that its holders come from."""


class Members:
    """At most one connection for each name; each counts under its token's grant."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._members: dict[str, Connection] = {}
        self._rejections: dict[Who, tuple[int, float]] = {}

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[tuple[str, Connection]]:
        return iter(list(self._members.items()))

    def get(self, name: str) -> Connection | None:
        """The client's connection, if there is one."""
        return self._members.get(name)

    def admit(self, connection: Connection, hello: Hello, grant: Grant, now: float) -> Connection | None:
        """Lets a client in; answers with the older connection of its name, whose place it took.

        Raises:
            ProtocolError: it is shut out, or the gateway or its token is full.
        """
        name = hello.client
        for who, most in self._counted(name, grant.name, connection.address):
            count, until = self._rejections.get(who, (0, 0.0))
            if count >= most and now < until:
                raise ProtocolError(
                    "shut_out", "too many of this client's updates were rejected; come back later", fatal=True
                )
        older = self._members.get(name)
        if older is None and len(self._members) >= self._limits.max_clients:
            raise ProtocolError("full", "the gateway has as many clients as it takes", fatal=True)
        shares = older is not None and older.grant is grant
        if not shares:
            try:
                grant.enter()
            except AccessRefusedError as error:
                raise ProtocolError(error.code, error.message, fatal=True) from None
        if older is not None and older.grant is not None and not shares:
            older.grant.leave()
        connection.hello, connection.grant = hello, grant
        self._members[name] = connection
        return older

    def remove(self, connection: Connection) -> bool:
        """The connection is gone; false when it was none of a client, or a newer one had taken its place."""
        if connection.hello is None or self._members.get(connection.hello.client) is not connection:
            return False
        del self._members[connection.hello.client]
        if connection.grant is not None:
            connection.grant.leave()
        return True

    def count_rejection(self, name: str, token: str, address: str, now: float) -> bool:
        """Counts a rejected update; true when the client is shut out for it.

        It counts for the token at the address as well: a name costs nothing.
        """
        if len(self._rejections) >= REMEMBERED:
            self._rejections = {other: entry for other, entry in self._rejections.items() if entry[1] > now}
        shut_out = False
        for who, most in self._counted(name, token, address):
            count = self._rejections.get(who, (0, 0.0))[0] + 1
            self._rejections[who] = (count, now + self._limits.shut_out_s)
            shut_out |= count >= most
        return shut_out

    def forgive(self, name: str, token: str, address: str) -> None:
        """An update of this client was accepted: its rejected ones do not count any more, and half of its kin's."""
        self._rejections.pop(name, None)
        count, until = self._rejections.pop((token, address), (0, 0.0))
        if count > 1:
            self._rejections[token, address] = (count // 2, until)

    def _counted(self, name: str, token: str, address: str) -> tuple[tuple[Who, int], ...]:
        return (
            (name, self._limits.max_rejections),
            ((token, address), self._limits.max_address_rejections),
        )
