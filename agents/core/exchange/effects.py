"""What the conversation wants done: the shell does it in this order, and tells the conversation how it went.

Those that name a method are answered by a call of it, sooner or later, in any order, even when the connection that they
are about is gone; only the end of the process takes them along unanswered.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Protocol

from agents.core.exchange.connections import Connection, Upload
from agents.core.exchange.leases import Lease
from agents.core.exchange.messages import Hello, UploadBegin
from agents.core.exchange.upload_rules import Expected
from agents.words.events import Progress, UpdateMetrics, UpdateRejected, UpdateSubmitted
from bus.words.envelope import Event, Stored
from bus.words.values import Frozen


class Delivery(Protocol):
    """A task that the broker handed out for the ``attempt``-th time; it comes again unless it is settled."""

    @property
    def stored(self) -> Stored:
        """The ``task.assigned`` event."""

    @property
    def attempt(self) -> int:
        """From 1."""


@dataclass(eq=False)
class Commit:
    """A complete upload on its way to a fact."""

    upload: Upload
    metrics: UpdateMetrics
    engine: str
    expected: Expected
    norm: float | None = None
    """Of the update, once it was judged."""


# To a client.


@dataclass(frozen=True)
class Say:
    """Send this message."""

    connection: Connection
    message: Frozen


@dataclass(frozen=True)
class Close:
    """Close the connection once everything that was said has been sent; a WebSocket close code."""

    connection: Connection
    code: int
    reason: str


@dataclass(frozen=True)
class CheckToken:
    """See whether the client may train; answered at once by ``presence.admitted`` or ``presence.turned_away``."""

    connection: Connection
    hello: Hello


# To the broker's pool of tasks.


@dataclass(frozen=True)
class Fetch:
    """Ask for this many tasks and wait this long for the first; answered by ``pool.fetched``."""

    count: int
    wait_s: float


@dataclass(frozen=True)
class Ack:
    """Nobody has to do this task any more."""

    delivery: Delivery


@dataclass(frozen=True)
class GiveBack:
    """The task goes back to the pool, for others to get after ``delay_s``."""

    delivery: Delivery
    delay_s: float


@dataclass(frozen=True)
class InProgress:
    """These tasks are being worked on: the broker must not hand them to anybody else for now."""

    deliveries: tuple[Delivery, ...]


# To the stream.


@dataclass(frozen=True)
class TellProgress:
    """Say how far a task is; answered by ``told``."""

    connection: Connection
    progress: Progress


@dataclass(frozen=True)
class AwaitSequence:
    """Wait until the event of this sequence has been taken in, but not for ever; answered by ``reached``."""

    connection: Connection
    begin: UploadBegin
    sequence: int


@dataclass(frozen=True)
class PublishUpdate:
    """Publish the event by which an update counts; answered by ``commits.submitted`` or ``commits.failed``."""

    commit: Commit
    event: UpdateSubmitted
    cause: Event | None


@dataclass(frozen=True)
class PublishRejection:
    """Publish that an update does not count; answered by ``commits.rejected``.

    ``asker`` is who asked about a lease that had ended; without one, the lease ends with the answer. What is not to be
    ``written`` is answered as if it had been said: the stream knows enough of that task's rejections.
    """

    event: UpdateRejected
    lease: Lease
    asker: Connection | None = None
    written: bool = True


# To the disk and the object store.


@dataclass(frozen=True)
class KeepLease:
    """Remember the lease past the end of the process."""

    lease: Lease


@dataclass(frozen=True)
class DropLease:
    """Forget the lease and all bytes that came under it."""

    lease: Lease


@dataclass(frozen=True)
class OpenUpload:
    """Take up the upload where it stopped, bytes of another digest are forgotten; answered by ``opened``."""

    upload: Upload


@dataclass(frozen=True)
class WriteChunk:
    """Write bytes that follow those that are there; answered by ``written``."""

    upload: Upload
    offset: int
    data: memoryview


@dataclass(frozen=True)
class CloseUpload:
    """Nothing more comes for this upload; its bytes stay as long as the lease does."""

    upload: Upload


@dataclass(frozen=True)
class CheckUpdate:
    """Judge the bytes that are there; answered by ``commits.checked`` or ``commits.failed``."""

    commit: Commit


@dataclass(frozen=True)
class StoreUpdate:
    """Put the bytes into the object store; answered by ``commits.stored`` or ``commits.failed``."""

    commit: Commit


Effect = (
    Say
    | Close
    | CheckToken
    | Fetch
    | Ack
    | GiveBack
    | InProgress
    | TellProgress
    | AwaitSequence
    | PublishUpdate
    | PublishRejection
    | KeepLease
    | DropLease
    | OpenUpload
    | WriteChunk
    | CloseUpload
    | CheckUpdate
    | StoreUpdate
)


class Effects:
    """Those that wait to be done, in order."""

    def __init__(self) -> None:
        self._waiting: deque[Effect] = deque()

    def add(self, effect: Effect) -> None:
        """One more."""
        self._waiting.append(effect)

    def say(self, connection: Connection, message: Frozen) -> None:
        """A message, unless the connection is closed."""
        if connection.open:
            self.add(Say(connection, message))

    def next(self) -> Effect | None:
        """The one to do now, if there is one."""
        return self._waiting.popleft() if self._waiting else None
