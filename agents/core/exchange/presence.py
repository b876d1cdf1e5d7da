"""Who is there: connections from their first frame to their end, welcomed under a token or turned away."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from agents.core.exchange.access import OPEN, AccessRefusedError, Grant, Pace
from agents.core.exchange.answers import (
    ERRORS,
    NO_HELLO,
    REPLACED,
    SILENCE,
    STOPPING,
    Farewell,
    farewell_after,
)
from agents.core.exchange.connections import Connection
from agents.core.exchange.effects import CheckToken, Close, Effects
from agents.core.exchange.limits import Limits
from agents.core.exchange.members import Members
from agents.core.exchange.messages import PROTOCOL_VERSION, ErrorMessage, Hello, ProtocolError, Welcome
from agents.core.exchange.pool import Pool
from agents.core.exchange.uploads import Uploads

log = logging.getLogger(__name__)
HELLO_S = 5.0
SILENT_HEARTBEATS = 3
_QUIET_CODES = frozenset(code for code, error in ERRORS.items() if not error.counts)


class Presence:
    """Whatever ends a connection ends it here: its uploads stop, and its leases wait for the client or go back."""

    def __init__(self, limits: Limits, effects: Effects, members: Members, uploads: Uploads, pool: Pool) -> None:
        self._limits = limits
        self._effects = effects
        self._members = members
        self._uploads = uploads
        self._pool = pool

    def connected(self, address: str = "") -> Connection:
        """A new connection, of somebody at this address who has said nothing yet."""
        return Connection(Pace(self._limits.messages_per_s), address)

    def patience_s(self, connection: Connection) -> float:
        """How long it may be silent from now on."""
        return SILENT_HEARTBEATS * self._limits.heartbeat_s if connection.welcomed else HELLO_S

    def silent(self, connection: Connection, now: float) -> None:
        """Nothing came for that long."""
        self.close(connection, SILENCE if connection.welcomed else NO_HELLO, now)

    def pause_s(self, connection: Connection, size: int, now: float) -> float:
        """Seconds to wait after a frame of this many bytes before the next is taken in."""
        wait_s = connection.pace.delay(1, now)
        return max(wait_s, connection.grant.pace.delay(size, now)) if connection.grant else wait_s

    def left(self, connection: Connection, now: float) -> None:
        """The connection is gone; safe to repeat."""
        if connection.open:
            connection.open = False
            self._uploads.drop_all(connection)
            if self._members.remove(connection) and connection.hello is not None:
                self._pool.detach(connection.hello.client, now)

    def close(self, connection: Connection, farewell: Farewell, now: float) -> None:
        """Ends a connection; nothing that still comes from it counts."""
        if connection.open:
            self._effects.add(Close(connection, *farewell))
            self.left(connection, now)

    def close_all(self, now: float) -> None:
        """The gateway stops; the leases stay for the next process."""
        for _, connection in self._members:
            self.close(connection, STOPPING, now)

    def token_ended(self, connection: Connection, reason: str, now: float) -> None:
        """The client's token is not valid any more: it cannot come back, so its tasks need not wait for it."""
        if connection.open and connection.hello is not None:
            self._effects.say(connection, ErrorMessage(code="token", message=reason))
            self.close(connection, farewell_after("token"), now)
            self._pool.take_back(connection.hello.client)

    def greet(self, connection: Connection, hello: Hello) -> None:
        """The client says hello; ``admitted`` or ``turned_away`` follows.

        Raises:
            ProtocolError: ``twice`` or ``version``.
        """
        if connection.welcomed:
            raise ProtocolError("twice", "hello comes once")
        if hello.protocol != PROTOCOL_VERSION:
            raise ProtocolError("version", f"this gateway speaks protocol {PROTOCOL_VERSION}", fatal=True)
        connection.busy = True
        self._effects.add(CheckToken(connection, hello))

    def turned_away(self, connection: Connection, error: AccessRefusedError, now: float) -> None:
        """The client's token does not let it train."""
        connection.busy = False
        with self.answering(connection, now):
            raise ProtocolError(error.code, error.message, fatal=True)

    def admitted(self, connection: Connection, hello: Hello, grant: Grant, now: float) -> None:
        """The client's token lets it train: it joins, in place of an older connection of its name."""
        connection.busy = False
        if connection.open:
            with self.answering(connection, now):
                self._join(connection, hello, grant, now)

    def _join(self, connection: Connection, hello: Hello, grant: Grant, now: float) -> None:
        limits, name = self._limits, hello.client
        older = self._members.get(name)
        holders = (
            {older.grant.name}
            if older and older.grant
            else {lease.record.token for lease in self._pool.leases.of(name)}
        )
        if holders - {grant.name, OPEN}:
            raise ProtocolError("name_taken", "a client with another token has this name", fatal=True)
        if self._members.admit(connection, hello, grant, now) is not None and older is not None:
            self.close(older, REPLACED, now)
        resumed = self._pool.resume(name, hello.resume, now)
        self._effects.say(
            connection,
            Welcome(
                heartbeat_s=limits.heartbeat_s, lease_s=limits.lease_s, chunk_bytes=limits.chunk_bytes, resumed=resumed
            ),
        )
        log.info("client %s joined with %s, resumes %d", name, hello.engine, len(resumed))

    @contextlib.contextmanager
    def answering(self, connection: Connection, now: float) -> Iterator[None]:
        """What is wrong with what the client said goes back as ``error``, and closes the connection at last."""
        try:
            yield
        except ProtocolError as error:
            connection.errors += error.code not in _QUIET_CODES
            self._effects.say(connection, ErrorMessage(code=error.code, message=error.message[:500]))
            if error.fatal or connection.errors >= self._limits.max_errors:
                self.close(connection, farewell_after(error.code), now)
