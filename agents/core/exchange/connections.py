"""What the conversation knows of one connection and of the uploads that are under way on it."""

from __future__ import annotations

from dataclasses import dataclass, field

from agents.core.exchange.access import OPEN, Grant, Pace
from agents.core.exchange.leases import Lease
from agents.core.exchange.messages import Hello
from agents.core.exchange.upload_rules import Progression


@dataclass(eq=False)
class Connection:
    """One connection of a client, welcomed or not.

    Attributes:
        pace: of its messages.
        address: where it comes from; limits go by it, and never by a name that a client chose.
        hello: what the client said of itself; none before it was welcomed.
        grant: the token's, under which it was welcomed.
        open: the gateway has not closed it, and the client not left; nothing is taken from it after that.
        busy: what it said last is still being done; no further frame of it may be taken in before that has ended.
        uploads: those under way, by the client's numbers.
        errors: bad messages so far.
        progress_at: when it was last listened to about a task's progress.
    """

    pace: Pace
    address: str = ""
    hello: Hello | None = None
    grant: Grant | None = None
    open: bool = True
    busy: bool = False
    uploads: dict[int, Upload] = field(default_factory=dict)
    errors: int = 0
    progress_at: float = float("-inf")

    @property
    def token(self) -> str:
        """The name of its grant."""
        return self.grant.name if self.grant is not None else OPEN

    @property
    def welcomed(self) -> bool:
        """The client has said hello and was let in."""
        return self.hello is not None


@dataclass(eq=False)
class Upload:
    """The bytes of one update on their way to the spool.

    Attributes:
        connection: the connection that they come by.
        lease: the task that they are for.
        number: the client's number for it.
        sha256: the digest that the client announced.
        progress: how many bytes the spool has.
        counted: bytes of it that count against the spool's limit.
        void: the lease ended, so that the bytes are acknowledged and go nowhere.
        at_work: the spool opens its file or writes to it.
    """

    connection: Connection
    lease: Lease
    number: int
    sha256: str
    progress: Progression
    counted: int = 0
    void: bool = False
    at_work: bool = False
