"""The world around a gateway, in memory: a broker that sends tasks again, a write-once stream, and a spool on disk."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from agents.core.exchange.connections import Upload
from agents.core.exchange.leases import Lease, LeaseRecord
from agents.core.exchange.pool import ACK_WAIT_S
from agents.words.events import (
    Payload,
    RoundClosed,
    RoundFailed,
    RunFinished,
    TaskAssigned,
    UpdateRejected,
    UpdateSubmitted,
)
from bus.words.envelope import Stored
from bus.words.subjects import event_subject
from tests.builders import Stream


@dataclass(frozen=True)
class Delivered:
    """A delivery as the gateway gets it."""

    stored: Stored
    attempt: int


@dataclass
class Task:
    """One task in the pool: whoever asks at ``due`` or later gets it, unless somebody acknowledged it."""

    stored: Stored
    attempt: int = 0
    due: float = 0.0
    acked: bool = False


class Broker:
    """The durable consumer: what is not acknowledged comes again, and a word about any delivery of a task counts.

    ``inbox`` is what was sent to the gateway and not taken yet; a gateway that dies takes it along.
    """

    def __init__(self) -> None:
        self.tasks: dict[int, Task] = {}
        self.inbox: list[Delivered] = []

    def fetch(self, count: int, now: float, *, too_many: int) -> list[Delivered]:
        """Up to ``count``; some more may have been on their way since an earlier request."""
        for task in self.tasks.values():
            if not task.acked and task.due <= now and len(self.inbox) < count + too_many:
                task.attempt += 1
                task.due = now + ACK_WAIT_S
                self.inbox.append(Delivered(task.stored, task.attempt))
        taken, self.inbox = self.inbox[:count], self.inbox[count:]
        return taken

    def settle(self, stored: Stored) -> None:
        self.tasks[stored.sequence].acked = True

    def postpone(self, stored: Stored, until: float) -> None:
        self.tasks[stored.sequence].due = until


class Ledger:
    """The stream, which refuses a second write to a subject unless it says the same."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._stream = Stream()
        self._said: dict[str, Payload] = {}

    @property
    def events(self) -> list[Stored]:
        return self._stream.events

    def publish(self, data: Payload) -> bool:
        """Whether the stream says so now."""
        subject = event_subject(data)
        if subject in self._said:
            return self._said[subject] == data
        self._said[subject] = data
        stored = self._stream.add(data)
        if isinstance(data, TaskAssigned):
            self._broker.tasks[stored.sequence] = Task(stored)
        return True

    def submitted(self, task: TaskAssigned) -> list[UpdateSubmitted]:
        """The updates of a task."""
        said = (one.event.data for one in self.events)
        return [
            one for one in said if isinstance(one, UpdateSubmitted) and (one.round, one.user) == (task.round, task.user)
        ]

    def is_over(self, task: TaskAssigned) -> bool:
        """Nobody needs the task's update any more."""
        ends = (one.event.data for one in self.events)
        return bool(self.submitted(task)) or any(
            isinstance(one, RunFinished)
            or (isinstance(one, RoundClosed | RoundFailed) and one.round == task.round)
            or (
                isinstance(one, UpdateRejected)
                and (one.round, one.user, one.code) == (task.round, task.user, "refused")
            )
            for one in ends
        )


@dataclass
class Disk:
    """The spool: what outlives the gateway, and the files that it has open."""

    kept: dict[str, LeaseRecord] = field(default_factory=dict)
    files: dict[tuple[str, str], bytearray] = field(default_factory=dict)
    open: set[Upload] = field(default_factory=set)

    def keep(self, lease: Lease) -> None:
        self.kept[lease.id] = lease.record

    def drop(self, lease: Lease) -> None:
        self.kept.pop(lease.id, None)
        self._forget(one for one in self.files if one[0] == lease.id)

    def take_up(self, upload: Upload) -> int | None:
        """The offset, unless the lease's folder is gone."""
        if upload.lease.id not in self.kept:
            return None
        assert not any(other.lease.id == upload.lease.id for other in self.open), "two writers of one file"
        this = (upload.lease.id, upload.sha256)
        self._forget(one for one in self.files if one[0] == this[0] and one != this)
        self.open.add(upload)
        data = self.files.setdefault(this, bytearray())
        if len(data) > upload.progress.size:
            data.clear()
        return len(data)

    def write(self, upload: Upload, offset: int, data: memoryview) -> int:
        assert upload in self.open
        there = self.files.get((upload.lease.id, upload.sha256), bytearray())
        there[offset:] = data
        return offset + len(data)

    def content(self, upload: Upload) -> bytes:
        return bytes(self.files[upload.lease.id, upload.sha256])

    def _forget(self, names: Iterable[tuple[str, str]]) -> None:
        for name in list(names):
            del self.files[name]
