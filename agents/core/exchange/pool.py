"""Who gets which task: clients that wait for one, the broker's deliveries, and the leases between the two."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Sequence

from agents.core.exchange.access import OPEN
from agents.core.exchange.connections import Connection
from agents.core.exchange.effects import Ack, Delivery, DropLease, Effects, Fetch, GiveBack, InProgress, KeepLease
from agents.core.exchange.leases import Lease, LeaseRecord, LeaseTable, Outcome, key_of
from agents.core.exchange.limits import Limits
from agents.core.exchange.members import Members
from agents.core.exchange.messages import MAX_SLOTS, Assignment, ProtocolError, TaskRevoked
from agents.core.exchange.runs import Ended, Runs
from agents.core.exchange.uploads import Uploads
from agents.words.events import TaskAssigned
from bus.words.envelope import Event

log = logging.getLogger(__name__)
FETCH_S = 5.0
SWEEP_S = 0.1


class Pool:
    """Hands the broker's tasks to clients that are ready, each under a lease, and gives back what comes to nothing.

    Attributes:
        leases: all of this gateway's.
        granted: tasks handed to clients so far.
        returned: tasks that went back so far.
        next_tick_at: when ``tick`` has something to do at the latest.
    """

    def __init__(
        self,
        limits: Limits,
        effects: Effects,
        members: Members,
        uploads: Uploads,
        runs: Runs,
        kept: Iterable[LeaseRecord],
        now: float,
    ) -> None:
        self._effects = effects
        self._members = members
        self._uploads = uploads
        self._runs = runs
        self._lease_s = limits.lease_s
        self.leases = LeaseTable(limits.lease_s)
        self.granted = self.returned = 0
        self.next_tick_at = self._tell_broker_at = now
        self._deliveries: dict[str, Delivery] = {}
        self._ready: deque[str] = deque()
        self._caught_up = self._fetching = self._sweep = False
        for record in sorted(kept, key=lambda one: -one.attempt):
            if self.leases.holder(key_of(record.task)) is None:
                self.leases.grant(record, expires_at=now + limits.lease_s)
            else:
                # A process that died between ending one and granting the next; only the newest counts.
                effects.add(DropLease(Lease(record)))

    @property
    def ready(self) -> int:
        """How many tasks clients wait for."""
        return len(self._ready)

    def cause(self, lease: Lease) -> Event | None:
        """The event that assigned the lease's task; none after a restart, until the broker sends it again."""
        delivery = self._deliveries.get(lease.id)
        return None if delivery is None else delivery.stored.event

    # Clients

    def want(self, client: str) -> None:
        """A connected client wants one more task.

        Raises:
            ProtocolError: ``too_many`` when it has as many as it may.
        """
        if len(self.leases.of(client)) + self._ready.count(client) >= MAX_SLOTS:
            raise ProtocolError("too_many", f"a client holds or waits for at most {MAX_SLOTS} tasks")
        self._ready.append(client)
        self._fetch()

    def resume(self, client: str, held: Iterable[str]) -> tuple[str, ...]:
        """The client is back: it waits for nothing yet, and has those leases again that are among what it still holds.

        Those that it gave up go back.
        """
        self._forget(client)
        resumed, given_up = self.leases.resume(client, held)
        for lease in given_up:
            self.give_back(lease)
        return tuple(lease.id for lease in resumed)

    def detach(self, client: str, now: float) -> None:
        """The client's connection is gone: its leases wait for its return."""
        self._forget(client)
        self.leases.detach(client, now)

    def take_back(self, client: str) -> None:
        """The client does not come back: others may have its tasks."""
        for lease in self.leases.of(client):
            if not lease.committing:
                self.give_back(lease)

    def _forget(self, client: str) -> None:
        if client in self._ready:
            self._ready = deque(name for name in self._ready if name != client)
            # What the broker was asked for on its behalf may still come, and then goes back.
            self._sweep = True
            self._fetch()

    # Leases

    def give_back(self, lease: Lease, *, delay_s: float = 0.0) -> None:
        """Ends a lease; its task goes back to the pool."""
        self.returned += 1
        if (delivery := self._end(lease, None)) is not None:
            self._effects.add(GiveBack(delivery, delay_s))

    def finish(self, lease: Lease, outcome: Outcome) -> None:
        """Ends a lease whose task nobody has to do any more."""
        if (delivery := self._end(lease, outcome)) is not None:
            self._effects.add(Ack(delivery))

    def _end(self, lease: Lease, outcome: Outcome | None) -> Delivery | None:
        lease.committing = False
        self.leases.end(lease, outcome)
        self._uploads.end(lease)
        self._effects.add(DropLease(lease))
        return self._deliveries.pop(lease.id, None)

    def revoke(self, ended: Ended) -> None:
        """A task, a round or a run is over: so are the leases of its tasks, but for those that decide themselves."""
        for lease in self.leases.within(ended):
            if not lease.committing:
                reason = self._runs.is_over(lease.key) or "the task is over"
                self.finish(lease, "revoked")
                if (holder := self._members.get(lease.record.client)) is not None:
                    self._effects.say(holder, TaskRevoked(lease=lease.id, reason=reason))

    # The broker

    def caught_up(self) -> None:
        """All that was ever said is known: from now on tasks may be handed out."""
        self._caught_up = True
        for lease in self.leases:
            if self._runs.is_over(lease.key):
                self.revoke(lease.key)
        self._fetch()

    def _fetch(self) -> None:
        if self._fetching or not self._caught_up or not (self._ready or self._sweep):
            return
        self._fetching, self._sweep = True, False
        self._effects.add(Fetch(max(1, self.ready), FETCH_S if self._ready else SWEEP_S))

    def fetched(self, deliveries: Sequence[Delivery]) -> None:
        """What a fetch brought."""
        self._fetching = False
        for delivery in deliveries:
            self._hand_out(delivery)
        self._fetch()

    def _hand_out(self, delivery: Delivery) -> None:
        task = delivery.stored.event.data
        assert isinstance(task, TaskAssigned)
        key = key_of(task)
        if self._runs.is_over(key):
            self._effects.add(Ack(delivery))
        elif (held := self.leases.holder(key)) is not None:
            # Sent again because this gateway or its connection to the broker was away for long.
            self._deliveries[held.id] = delivery
        elif (found := self._next_client()) is None:
            self._effects.add(GiveBack(delivery, 0.0))
        else:
            self._grant(delivery, task, *found)

    def _next_client(self) -> tuple[str, Connection] | None:
        while self._ready:
            client = self._ready.popleft()
            if (connection := self._members.get(client)) is not None:
                return client, connection
        return None

    def _grant(self, delivery: Delivery, task: TaskAssigned, client: str, connection: Connection) -> None:
        token = connection.grant.name if connection.grant else OPEN
        record = LeaseRecord(
            task=task, client=client, token=token, sequence=delivery.stored.sequence, attempt=delivery.attempt
        )
        lease = self.leases.grant(record)
        self._deliveries[lease.id] = delivery
        self.granted += 1
        self._effects.add(KeepLease(lease))
        self._effects.say(connection, Assignment(lease=lease.id, task=task))

    def tick(self, now: float) -> None:
        """Lets leases of lost clients expire, and tells the broker that the others are worked on."""
        for lease in self.leases.expired(now):
            log.info("client %s did not come back", lease.record.client, extra=lease.about)
            self.give_back(lease)
        if now >= self._tell_broker_at:
            self._tell_broker_at = now + self._lease_s / 3
            if self._deliveries:
                self._effects.add(InProgress(tuple(self._deliveries.values())))
        # A lease that begins to wait from now on ends after the next tick.
        self.next_tick_at = min((self._tell_broker_at, *self.leases.expiries()))
