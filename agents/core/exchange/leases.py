"""Who works on which task until when: the gateway's leases as a table without clocks, sockets or a bus.

A lease belongs to a client by name. While the client is connected it does not end by time; when the connection goes,
the lease waits for the client's return and expires after that. A lease that takes a while is shareable, so that an idle
client may get the task as well, and one whose time is over has lapsed, so that any may; both are good still.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import inf
from typing import Literal

from pydantic import Field

from agents.words.events import TaskAssigned
from bus.words.values import Frozen, Name

TaskKey = tuple[str, int, str]
Outcome = Literal["accepted", "revoked"]
REMEMBERED = 4096
MOST_HOLDERS = 2
RETURN_S = 3.0
"""How long a task waits for the return of its client alone."""


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
        phase: how far its client said to be; progress of an earlier phase is no news.
        committing: its update is being checked and published, so nothing else may end it.
        upload: the number under which its client asked last about its upload, and expects the answer.
        address: where its client came from; not known of an earlier process's.
        granted_at: none when that was before this process.
        due_at: when its task's own time is over.
        away_at: when its client has been away for ``RETURN_S``; none while the client is connected.
        backup_at: when an idle client may back it up.
        lapsed: one of the two has passed.
        shareable: ``backup_at`` has passed, or the lease lapsed.
        done_at: when its upload was complete.
    """

    record: LeaseRecord
    expires_at: float | None = None
    address: str = ""
    granted_at: float | None = None
    due_at: float = inf
    away_at: float | None = None
    backup_at: float = inf
    lapsed: bool = False
    shareable: bool = False
    done_at: float | None = None
    phase: int = -1
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
    def lapses_at(self) -> float:
        """When another client may have the task too."""
        return self.due_at if self.away_at is None else min(self.due_at, self.away_at)

    @property
    def about(self) -> dict[str, object]:
        """Run, round and user of the task, for a line of the log."""
        return dict(zip(("run", "round", "user"), self.key, strict=True))


def key_of(task: TaskAssigned) -> TaskKey:
    """Run, round and user of a task."""
    return task.run, task.round, task.user


class LeaseTable:
    """All leases of one gateway: at most two for each task, of different clients."""

    def __init__(self, lease_s: float) -> None:
        self.lease_s = lease_s
        self._leases: dict[str, Lease] = {}
        self._by_key: dict[TaskKey, list[Lease]] = {}
        self._by_client: dict[str, dict[str, Lease]] = {}
        self._by_token: Counter[str] = Counter()
        self._outcomes: OrderedDict[str, tuple[Outcome, LeaseRecord]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._leases)

    def __iter__(self) -> Iterator[Lease]:
        return iter(list(self._leases.values()))

    def grant(
        self, record: LeaseRecord, *, granted_at: float | None = None, due_at: float = inf, backup_at: float = inf
    ) -> Lease:
        """A new lease; all others of the task must be shareable.

        Raises:
            ValueError: the task is leased already, twice or to this client or to one that need not share it yet.
        """
        lease = Lease(record, granted_at=granted_at, due_at=due_at, backup_at=backup_at)
        others = self.holders(lease.key)
        if len(others) == MOST_HOLDERS or any(
            not other.shareable or other.record.client == record.client for other in others
        ):
            raise ValueError(f"{lease.id}: the task has a lease")
        return self._add(lease)

    def restore(self, record: LeaseRecord, now: float) -> Lease:
        """A lease of an earlier process, whose client is not back yet."""
        return self._add(Lease(record, expires_at=now + self.lease_s, away_at=now + RETURN_S))

    def _add(self, lease: Lease) -> Lease:
        self._by_key.setdefault(lease.key, []).append(lease)
        self._leases[lease.id] = lease
        self._by_token[lease.record.token] += 1
        self._by_client.setdefault(lease.record.client, {})[lease.id] = lease
        return lease

    def get(self, lease: str, client: str) -> Lease | None:
        """The lease of this name if it is this client's."""
        found = self._leases.get(lease)
        return found if found is not None and found.record.client == client else None

    def holders(self, key: TaskKey) -> list[Lease]:
        """The leases of a task, oldest first."""
        return list(self._by_key.get(key, ()))

    def under(self, token: str) -> int:
        """How many leases a token's holders have together; those that are shareable take no room from others."""
        return self._by_token[token]

    def lapse(self, lease: Lease, *, lapsed: bool = True) -> None:
        """The lease's time is over, or not any more."""
        lease.lapsed = lapsed
        self.share(lease, shareable=lapsed)

    def share(self, lease: Lease, *, shareable: bool = True) -> None:
        """An idle client may back the lease up, or not any more."""
        if lease.shareable != shareable:
            lease.shareable = shareable
            self._by_token[lease.record.token] += -1 if shareable else 1

    def of(self, client: str) -> list[Lease]:
        """The leases of a client, connected or not."""
        return list(self._by_client.get(client, {}).values())

    def within(self, part: TaskKey | tuple[str, int] | tuple[str]) -> list[Lease]:
        """The leases of a run, of a round, or of one task."""
        if len(part) == 3:
            return self.holders(part)
        return [lease for lease in self._leases.values() if lease.key[: len(part)] == part]

    def detach(self, client: str, now: float) -> None:
        """The client is gone: its leases wait ``lease_s`` for its return."""
        for lease in self.of(client):
            lease.expires_at, lease.away_at = now + self.lease_s, now + RETURN_S

    def resume(self, client: str, held: Iterable[str]) -> tuple[list[Lease], list[Lease]]:
        """The client is back and holds these leases: which of them are its own again, and which it gave up.

        Those that it gave up stay in the table until they are ended.
        """
        names = set(held)
        resumed, given_up = [], []
        for lease in self.of(client):
            if lease.id in names:
                lease.expires_at = lease.away_at = None
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

    def lapsing(self, now: float) -> list[Lease]:
        """Those whose time is over, and that have not lapsed before."""
        return [
            lease
            for lease in self._leases.values()
            if lease.lapses_at <= now and not lease.lapsed and not lease.committing
        ]

    def taking_long(self, now: float) -> list[Lease]:
        """Those that become shareable now."""
        return [
            lease
            for lease in self._leases.values()
            if lease.backup_at <= now and not lease.shareable and not lease.committing
        ]

    def changes(self) -> Iterator[float]:
        """When leases lapse or become shareable, in no order."""
        for lease in self._leases.values():
            if not lease.committing:
                if not lease.lapsed:
                    yield lease.lapses_at
                if not lease.shareable:
                    yield lease.backup_at

    def expiries(self) -> Iterator[float]:
        """When the leases of lost clients end, in no order."""
        return (
            lease.expires_at for lease in self._leases.values() if lease.expires_at is not None and not lease.committing
        )

    def end(self, lease: Lease, outcome: Outcome | None = None) -> bool:
        """Takes a lease out, and remembers how it ended for a client that asks late; false if it was out."""
        if self._leases.pop(lease.id, None) is None:
            return False
        self._by_key[lease.key].remove(lease)
        if not self._by_key[lease.key]:
            del self._by_key[lease.key]
        self._by_token[lease.record.token] -= not lease.shareable
        if not self._by_token[lease.record.token]:
            del self._by_token[lease.record.token]
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
