"""Who works on which task until when: the gateway's leases as a table without clocks, sockets or a bus.

A lease belongs to a client by name. While the client is connected it does not end by time; when the connection goes,
the lease waits for the client's return and expires after that.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from agents.words.events import TaskAssigned
from bus.words.values import Frozen, Name

TaskKey = tuple[str, int, str]
Outcome = Literal["accepted", "revoked"]
REMEMBERED = 4096


class LeaseRecord(Frozen):
    """What of a lease has to outlive the gateway's process."""

    task: TaskAssigned
    client: Name
    token: str = Field(default="open", max_length=64, description="name of the grant that the client came under")
    sequence: int
    attempt: int


@dataclass
class Lease:
    """One task in one client's hands.

    Attributes:
        record: the task, its holder, the task's place in the stream and which delivery of it this is.
        expires_at: when the lease ends unless its client returns; none while the client is connected.
        committing: its update is being checked and published, so nothing else may end it.
        upload: the number under which its client asked last about its upload, and expects the answer.
    """

    record: LeaseRecord
    expires_at: float | None = None
    committing: bool = False
    upload: int = 0

    @property
    def id(self) -> str:
        """Its name, the same for ever."""
        task = self.record.task
        return f"{task.run}.{task.round}.{task.user}.{self.record.attempt}"

    @property
    def key(self) -> TaskKey:
        """Run, round and user of the task."""
        return key_of(self.record.task)

    @property
    def about(self) -> dict[str, object]:
        """Run, round and user of the task, for a line of the log."""
        return dict(zip(("run", "round", "user"), self.key, strict=True))


def key_of(task: TaskAssigned) -> TaskKey:
    """Run, round and user of a task."""
    return task.run, task.round, task.user


class LeaseTable:
    """All leases of one gateway: at most one for each task."""

    def __init__(self, lease_s: float) -> None:
        self.lease_s = lease_s
        self._leases: dict[str, Lease] = {}
        self._by_key: dict[TaskKey, Lease] = {}
        self._by_client: dict[str, dict[str, Lease]] = {}
        self._outcomes: OrderedDict[str, tuple[Outcome, LeaseRecord]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._leases)

    def __iter__(self) -> Iterator[Lease]:
        return iter(list(self._leases.values()))

    def grant(self, record: LeaseRecord, *, expires_at: float | None = None) -> Lease:
        """A new lease; the task must not have one.

        Raises:
            ValueError: the task is leased already.
        """
        lease = Lease(record, expires_at)
        if lease.key in self._by_key:
            raise ValueError(f"{lease.id}: the task has a lease")
        self._leases[lease.id] = self._by_key[lease.key] = lease
        self._by_client.setdefault(record.client, {})[lease.id] = lease
        return lease

    def get(self, lease: str, client: str) -> Lease | None:
        """The lease of this name if it is this client's."""
        found = self._leases.get(lease)
        return found if found is not None and found.record.client == client else None

    def holder(self, key: TaskKey) -> Lease | None:
        """The lease of a task."""
        return self._by_key.get(key)

    def of(self, client: str) -> list[Lease]:
        """The leases of a client, connected or not."""
        return list(self._by_client.get(client, {}).values())

    def within(self, part: TaskKey | tuple[str, int] | tuple[str]) -> list[Lease]:
        """The leases of a run, of a round, or of one task."""
        if len(part) == 3:
            return [self._by_key[part]] if part in self._by_key else []
        return [lease for lease in self._leases.values() if lease.key[: len(part)] == part]

    def detach(self, client: str, now: float) -> None:
        """The client is gone: its leases wait ``lease_s`` for its return."""
        for lease in self.of(client):
            lease.expires_at = now + self.lease_s

    def resume(self, client: str, held: Iterable[str]) -> tuple[list[Lease], list[Lease]]:
        """The client is back and holds these leases: which of them are its own again, and which it gave up.

        Those that it gave up stay in the table until they are ended.
        """
        names = set(held)
        resumed, given_up = [], []
        for lease in self.of(client):
            if lease.id in names:
                lease.expires_at = None
                resumed.append(lease)
            elif not lease.committing:
                given_up.append(lease)
        return resumed, given_up

    def expired(self, now: float) -> list[Lease]:
        """Those whose clients did not return in time; they stay in the table until they are ended."""
        return [
            lease
            for lease in self._leases.values()
            if lease.expires_at is not None and lease.expires_at <= now and not lease.committing
        ]

    def expiries(self) -> Iterator[float]:
        """When the leases of lost clients end, in no order."""
        return (
            lease.expires_at for lease in self._leases.values() if lease.expires_at is not None and not lease.committing
        )

    def end(self, lease: Lease, outcome: Outcome | None = None) -> bool:
        """Takes a lease out, and remembers how it ended for a client that asks late; false if it was out."""
        if self._leases.pop(lease.id, None) is None:
            return False
        del self._by_key[lease.key]
        of_client = self._by_client[lease.record.client]
        del of_client[lease.id]
        if not of_client:
            del self._by_client[lease.record.client]
        if outcome is not None:
            self._outcomes[lease.id] = (outcome, lease.record)
            while len(self._outcomes) > REMEMBERED:
                self._outcomes.popitem(last=False)
        return True

    def outcome(self, lease: str, client: str) -> tuple[Outcome, LeaseRecord] | None:
        """How a lease of this client ended, if that is remembered."""
        found = self._outcomes.get(lease)
        return found if found is not None and found[1].client == client else None
