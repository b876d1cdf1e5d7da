"""The gateway's side of every conversation, without sockets, broker, disk or clock.

What happens comes in by calls: frames of clients, events of the stream, what became of effects, and the time. What is
to be done about it waits in ``effects``: messages, closings, and work for the shell, to be done in order. Nothing here
waits: a step that needs the world ends in an effect, and its answer is a call of its own. ``next_tick_at`` says when
``tick`` is due. Times are seconds of any clock that only goes forward.

A process that dies loses all of this; leases that were kept, the stream and the broker's redeliveries bring it back.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass

from agents.core.exchange.answers import GOODBYE
from agents.core.exchange.commits import Commits
from agents.core.exchange.connections import Connection, Upload
from agents.core.exchange.effects import AwaitSequence, Effects, TellProgress
from agents.core.exchange.leases import Lease, LeaseRecord
from agents.core.exchange.limits import Limits
from agents.core.exchange.members import Members
from agents.core.exchange.messages import (
    ClientMessage,
    Hello,
    Leave,
    Ping,
    Pong,
    ProgressMessage,
    ProtocolError,
    Ready,
    TaskFailed,
    UploadBegin,
    UploadCommit,
    parse_chunk,
    parse_client_message,
)
from agents.core.exchange.pool import Pool
from agents.core.exchange.presence import Presence
from agents.core.exchange.runs import Runs
from agents.core.exchange.upload_rules import UpdateRefusedError, check_size
from agents.core.exchange.uploads import Uploads
from agents.words.events import Progress
from agents.words.run_config import RunDataset
from bus.words.envelope import Stored

log = logging.getLogger(__name__)
PROGRESS_EVERY_S = 0.1
"""Of one connection; the first word of each phase of a task is always heard."""
PHASES = ("predict", "train", "upload")


@dataclass(frozen=True)
class Statistics:
    """What the gateway has at hand now, and what it did so far."""

    clients: int
    leases: int
    ready: int
    spooled_bytes: int
    granted: int
    returned: int
    accepted: int
    rejected: int
    unwritten: int


class Conversation:
    """Everything that the gateway decides, from its start at ``now`` on with the leases that were ``kept``.

    Attributes:
        effects: what waits to be done.
        runs: what the stream said.
        members: who is connected.
        presence: takes connections, welcomes and farewells.
        pool: takes the broker's deliveries.
        commits: takes what became of commits and rejections.
        is_caught_up: everything has been read that was in the stream at the start.
    """

    def __init__(self, limits: Limits, kept: Iterable[LeaseRecord], now: float) -> None:
        self._limits = limits
        self.effects = Effects()
        self.runs = Runs()
        self.members = Members(limits)
        self._uploads = Uploads(limits, self.effects)
        self.pool = Pool(limits, self.effects, self.members, self._uploads, self.runs, kept, now)
        self.presence = Presence(limits, self.effects, self.members, self._uploads, self.pool)
        self.commits = Commits(self.effects, self.members, self.presence, self.pool, self.runs)
        self.is_caught_up = False

    def statistics(self) -> Statistics:
        """The figures of now."""
        return Statistics(
            clients=len(self.members),
            leases=len(self.pool.leases),
            ready=len(self.pool.candidates),
            spooled_bytes=self._uploads.spooled_bytes,
            granted=self.pool.granted,
            returned=self.pool.returned,
            accepted=self.commits.accepted,
            rejected=self.commits.refused,
            unwritten=self.commits.unwritten,
        )

    # Time

    @property
    def next_tick_at(self) -> float:
        """When ``tick`` is due."""
        return self.pool.next_tick_at

    def tick(self, now: float) -> None:
        """Time has passed."""
        self.pool.tick(now)

    # The stream

    def took_place(self, stored: Stored, dataset: RunDataset | None = None) -> None:
        """The next event of the stream; ``dataset`` is what a ``run.started`` names, if it can be read."""
        ended = self.runs.fold(stored, dataset)
        if ended is not None and self.is_caught_up:
            self.pool.revoke(ended)

    def caught_up(self) -> None:
        """All events have come that were there at the start."""
        self.is_caught_up = True
        self.pool.caught_up()

    # What clients say

    def received(self, connection: Connection, frame: str | bytes, now: float) -> None:
        """Takes one frame; whatever is wrong with it goes back as ``error``, and closes the connection at last."""
        if connection.open:
            with self.presence.answering(connection, now):
                if isinstance(frame, bytes):
                    self._client(connection)
                    self._uploads.chunk(connection, *parse_chunk(frame))
                else:
                    self._take(connection, parse_client_message(frame), now)

    def _take(self, connection: Connection, message: ClientMessage, now: float) -> None:
        if isinstance(message, Hello):
            self.presence.greet(connection, message)
            return
        hello = self._client(connection)
        match message:
            case Ping():
                self.effects.say(connection, Pong())
            case Ready():
                self.pool.want(hello.client, now)
            case ProgressMessage():
                self._progress(connection, hello.client, message, now)
            case UploadBegin():
                self._begin(connection, hello.client, message)
            case UploadCommit():
                self._commit(connection, hello, message, now)
            case Leave():
                self.presence.close(connection, GOODBYE, now)
                self.pool.take_back(hello.client)
            case TaskFailed():
                self.commits.cannot(self._lease(hello.client, message.lease), message.reason, now)

    def _client(self, connection: Connection) -> Hello:
        if connection.hello is None:
            raise ProtocolError("hello", "say hello first", fatal=True)
        return connection.hello

    def _lease(self, client: str, name: str) -> Lease:
        lease = self.pool.leases.get(name, client)
        if lease is None or lease.committing:
            raise ProtocolError("unknown_lease", "this lease is over or was never this client's")
        return lease

    def _progress(self, connection: Connection, client: str, message: ProgressMessage, now: float) -> None:
        lease = self._lease(client, message.lease)
        phase = PHASES.index(message.phase)
        if now - connection.progress_at < PROGRESS_EVERY_S and phase <= lease.phase:
            return
        lease.phase = max(phase, lease.phase)
        connection.progress_at, connection.busy = now, True
        said = message.model_dump(exclude={"type", "lease"}) | lease.about | {"client": client}
        self.effects.add(TellProgress(connection, Progress.model_validate(said)))

    def told(self, connection: Connection) -> None:
        """The progress was said, or nobody was there to hear it."""
        connection.busy = False

    # Updates

    def _begin(self, connection: Connection, client: str, begin: UploadBegin) -> None:
        if self.commits.answer_late(connection, client, begin):
            return
        lease = self.pool.leases.get(begin.lease, client)
        if lease is None:
            raise ProtocolError("unknown_lease", "this lease is over or was never this client's")
        lease.upload = begin.upload
        if lease.committing:
            # A client that came back while its update is checked: the answer is on its way.
            return
        if (same := connection.uploads.get(begin.upload)) is not None and not same.void:
            raise ProtocolError("upload_number", "an upload of this number is under way")
        self._uploads.drop_all(connection, lease)
        if lease.record.sequence > self.runs.sequence:
            # The assignment may be here before the plan that came before it has been read.
            connection.busy = True
            self.effects.add(AwaitSequence(connection, begin, lease.record.sequence))
            return
        try:
            check_size(begin.size, self.commits.expected(lease), self._limits.max_upload_bytes)
        except UpdateRefusedError as error:
            self.commits.reject(lease, error)
        else:
            self._uploads.begin(connection, lease, begin)

    def reached(self, effect: AwaitSequence, now: float, *, in_time: bool) -> None:
        """The stream was read that far, or not ``in_time``."""
        connection = effect.connection
        connection.busy = False
        if connection.open:
            with self.presence.answering(connection, now):
                if not in_time:
                    raise ProtocolError("busy", "the gateway lags behind the stream; try again later")
                self._begin(connection, self._client(connection).client, effect.begin)

    def opened(self, upload: Upload, offset: int | None, now: float) -> None:
        """The spool has the upload up to ``offset``; none: it cannot keep it."""
        with self.presence.answering(upload.connection, now):
            self._uploads.opened(upload, offset)

    def written(self, upload: Upload, offset: int | None, now: float) -> None:
        """The spool has the upload up to ``offset``; none: it could not write the chunk."""
        with self.presence.answering(upload.connection, now):
            self._uploads.written(upload, offset)

    def _commit(self, connection: Connection, hello: Hello, commit: UploadCommit, now: float) -> None:
        upload = self._uploads.take(connection, commit)
        if not self.commits.answer_late(connection, hello.client, commit):
            lease = self._lease(hello.client, commit.lease)
            lease.done_at = now
            self.commits.start(upload, commit.metrics, hello.engine)
