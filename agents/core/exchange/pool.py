"""Who gets which task: clients that wait for one, the broker's deliveries, and the leases between the two.

A task whose lease has lapsed goes back to the broker when somebody else waits for one, so that it comes again under an
attempt, and so a lease, of its own. Its first valid update counts. When both holders let their time pass, the older
makes room for a third; a task's time doubles with each that did, up to the round's, so that slow clients alone get it
done at last.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from math import inf

from agents.core.exchange.connections import Connection
from agents.core.exchange.effects import Ack, Delivery, DropLease, Effects, Fetch, GiveBack, InProgress, KeepLease
from agents.core.exchange.leases import MOST_HOLDERS, Lease, LeaseRecord, LeaseTable, Outcome, TaskKey, key_of
from agents.core.exchange.limits import Limits
from agents.core.exchange.members import Members
from agents.core.exchange.messages import MAX_SLOTS, Assignment, ProtocolError, TaskRevoked
from agents.core.exchange.refusals import Refusals
from agents.core.exchange.runs import Ended, Runs
from agents.core.exchange.standing import Standing
from agents.core.exchange.task_times import TaskTimes
from agents.core.exchange.uploads import Uploads
from agents.words.events import TaskAssigned
from bus.words.envelope import Event

log = logging.getLogger(__name__)
FETCH_S = 5.0
ACK_WAIT_S = 6.0
"""The broker gives a task again that nobody worked on for so long: what a killed gateway had taken and not leased."""
SWEEP_S = 0.1


class Pool:
    """Hands the broker's tasks to clients that are ready, each under a lease, and gives back what comes to nothing.

    Attributes:
        leases: all of this gateway's.
        standing: of the clients.
        refusals: of tasks that clients cannot do.
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
        self.leases = LeaseTable(limits.lease_s)
        self.standing = Standing(limits.max_token_tasks)
        self.refusals = Refusals()
        self._times = TaskTimes()
        self.granted = self.returned = 0
        self.next_tick_at = self._tell_broker_at = now
        self._deliveries: dict[TaskKey, Delivery] = {}
        self._offered: set[TaskKey] = set()
        """Tasks with a holder that went back to the broker for another."""
        self._slow: dict[str, Lease] = {}
        """Leases that lapsed, by name, in this order."""
        self._slowly: Counter[TaskKey] = Counter()
        """How often a task's own time passed."""
        self._ready: deque[str] = deque()
        self._caught_up = self._fetching = self._sweep = False
        for record in sorted(kept, key=lambda one: -one.attempt):
            if len(self.leases.holders(key_of(record.task))) < MOST_HOLDERS:
                self.leases.restore(record, now)
            else:
                # A process that died between ending one and granting the next; only the newest count.
                effects.add(DropLease(Lease(record)))

    @property
    def ready(self) -> int:
        """How many tasks clients wait for."""
        return len(self._ready)

    def cause(self, lease: Lease) -> Event | None:
        """The event that assigned the lease's task; none after a restart, until the broker sends it again."""
        delivery = self._deliveries.get(lease.key)
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
        self._go_on()

    def able(self, key: TaskKey, now: float) -> set[str]:
        """The clients that may do the task yet: they hold a task in its time, or wait for one that they may have.

        Once the task was refused often enough, who shows nothing is counted on for the task's own time and no longer:
        from then on only those whose last update that counts is not older than that.
        """
        patience_s = self._times.allowed_s(key[0], self._runs.deadline_s(key))
        overdue = self.refusals.enough_for_s(key, now) >= patience_s
        found = set()
        for client, _ in self._members:
            held = self.leases.of(client)
            works = all(lease.committing or not lease.lapsed for lease in held)
            if not works or not (held or (client in self._ready and self._may_take(client))):
                continue
            if not overdue or now - self.standing.worked_at(client) < patience_s:
                found.add(client)
        return found

    def resume(self, client: str, held: Iterable[str], now: float) -> tuple[str, ...]:
        """The client is back: it waits for nothing yet, and has those leases again that are among what it still holds.

        Those that it gave up go back.
        """
        self._forget(client)
        resumed, given_up = self.leases.resume(client, held)
        for lease in given_up:
            self.give_back(lease)
        for lease in resumed:
            lease.due_at = min(lease.due_at, now + self._allowed_s(lease.key))
            if lease.lapses_at > now:
                self.leases.lapse(lease, lapsed=False)
                self._slow.pop(lease.id, None)
            self._wake(lease)
        return tuple(lease.id for lease in resumed)

    def detach(self, client: str, now: float) -> None:
        """The client's connection is gone: its leases wait for its return."""
        self._forget(client)
        self.leases.detach(client, now)
        for lease in self.leases.of(client):
            self._wake(lease)

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
        self._end(lease, None)
        if holders := self.leases.holders(lease.key):
            if delay_s and _lapsed(holders) and (delivery := self._deliveries.get(lease.key)) is not None:
                # Offered to others, but not at once.
                self._offered.add(lease.key)
                self._effects.add(GiveBack(delivery, delay_s))
        else:
            self._offered.discard(lease.key)
            if (delivery := self._deliveries.pop(lease.key, None)) is not None:
                self._effects.add(GiveBack(delivery, delay_s))
        self._go_on()

    def finish(self, lease: Lease, outcome: Outcome) -> None:
        """Ends a lease whose task nobody has to do any more."""
        self._end(lease, outcome)
        self._settle(lease.key)
        if (delivery := self._deliveries.pop(lease.key, None)) is not None:
            self._effects.add(Ack(delivery))
        self._go_on()

    def _settle(self, key: TaskKey) -> None:
        self._offered.discard(key)
        self._slowly.pop(key, None)
        self.refusals.forget(key)

    def count(self, lease: Lease) -> None:
        """The lease's update counts: so long does a task take, and so good is its client."""
        if lease.done_at is None:
            return
        if lease.granted_at is not None:
            run = lease.record.task.run
            if self._times.learn(run, lease.done_at - lease.granted_at):
                self._hurry(run)
        self.standing.credit(lease.record.client, lease.record.token, lease.done_at)

    def _hurry(self, run: str) -> None:
        """How long a task of the run takes is known now: those under way have that time and no more."""
        for lease in self.leases.within((run,)):
            if lease.granted_at is not None and not lease.lapsed:
                lease.due_at = min(lease.due_at, lease.granted_at + self._allowed_s(lease.key))
                self._wake(lease)

    def fault(self, lease: Lease) -> None:
        """The lease's client failed."""
        self.standing.fault(lease.record.client, lease.record.token)

    def _end(self, lease: Lease, outcome: Outcome | None) -> None:
        lease.committing = False
        self.leases.end(lease, outcome)
        self._uploads.end(lease)
        self._slow.pop(lease.id, None)
        self._effects.add(DropLease(lease))

    def revoke(self, ended: Ended) -> None:
        """A task, a round or a run is over: so are the leases of its tasks, but for those that decide themselves."""
        for lease in self.leases.within(ended):
            if not lease.committing:
                reason = self._runs.is_over(lease.key) or "the task is over"
                self.finish(lease, "revoked")
                self._tell(lease, reason)

    def _tell(self, lease: Lease, reason: str) -> None:
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

    def _go_on(self) -> None:
        self._offer()
        self._fetch()

    def _offer(self) -> None:
        """As many tasks that lapsed go back to the broker as clients wait that may do them."""
        if not self._slow or not self._caught_up:
            return
        waiting = [client for client in self._ready if self._may_take(client)]
        del waiting[: len(self._offered)]
        for lease in list(self._slow.values()):
            key = lease.key
            delivery, holders = self._deliveries.get(key), self.leases.holders(key)
            if delivery is None or key in self._offered or not _lapsed(holders):
                continue
            other = next((client for client in waiting if client not in _clients(holders)), None)
            if other is not None:
                waiting.remove(other)
                self._offered.add(key)
                self._effects.add(GiveBack(delivery, 0.0))

    def _may_take(self, client: str) -> bool:
        """Whether a client may have one more task: nobody who lets a task lie gets another."""
        connection, held = self._members.get(client), self.leases.of(client)
        return (
            connection is not None
            and len(held) < self.standing.of_client(client)
            and not any(lease.lapsed for lease in held)
            and self.leases.under(connection.token) < self.standing.of_token(connection.token)
        )

    def _fetch(self) -> None:
        if self._fetching or not self._caught_up:
            return
        wanted = sum(self._may_take(client) for client in self._ready)
        if wanted or self._sweep:
            self._fetching, self._sweep = True, False
            self._effects.add(Fetch(max(1, wanted), FETCH_S if wanted else SWEEP_S))

    def fetched(self, deliveries: Sequence[Delivery], now: float) -> None:
        """What a fetch brought."""
        self._fetching = False
        for delivery in deliveries:
            self._hand_out(delivery, now)
        self._go_on()

    def _hand_out(self, delivery: Delivery, now: float) -> None:
        task = delivery.stored.event.data
        assert isinstance(task, TaskAssigned)
        key = key_of(task)
        self._offered.discard(key)
        holders = self.leases.holders(key)
        if self._runs.is_over(key):
            self._deliveries.pop(key, None)
            self._settle(key)
            self._effects.add(Ack(delivery))
        elif _lapsed(holders) and (found := self._next_client(key, holders)) is not None:
            for older in holders[: max(0, len(holders) - MOST_HOLDERS + 1)]:
                self.returned += 1
                self._end(older, None)
                self._tell(older, "it took too long; others do it")
            self._grant(delivery, task, *found, now)
        elif holders:
            # Sent again because this gateway or its connection to the broker was away, or nobody waits any more.
            self._deliveries[key] = delivery
        else:
            self._effects.add(GiveBack(delivery, 0.0))

    def _next_client(self, key: TaskKey, holders: Sequence[Lease]) -> tuple[str, Connection] | None:
        """Whoever waits longest of the best: who did not refuse it, has another token, has worked, fails less."""
        best: tuple[tuple[bool, bool, bool, int, int], int, str, Connection] | None = None
        for place, client in enumerate(self._ready):
            connection = self._members.get(client)
            if connection is None or client in _clients(holders) or not self._may_take(client):
                continue
            rank = (
                self.refusals.by(key, client),
                any(lease.record.token == connection.token for lease in holders),
                self.standing.worked_at(client) == -inf,
                self.standing.faults(client, connection.token),
                len(self.leases.of(client)),
            )
            if best is None or rank < best[0]:
                best = rank, place, client, connection
            if rank == (False, False, False, 0, 0):
                break
        if best is None:
            return None
        del self._ready[best[1]]
        return best[2:]

    def _grant(self, delivery: Delivery, task: TaskAssigned, client: str, connection: Connection, now: float) -> None:
        record = LeaseRecord(
            task=task,
            client=client,
            token=connection.token,
            sequence=delivery.stored.sequence,
            attempt=delivery.attempt,
        )
        lease = self.leases.grant(record, granted_at=now, due_at=now + self._allowed_s(key_of(task)))
        lease.address = connection.address
        self._deliveries[lease.key] = delivery
        self.granted += 1
        self._wake(lease)
        self._effects.add(KeepLease(lease))
        self._effects.say(connection, Assignment(lease=lease.id, task=task))

    # Time

    def _allowed_s(self, key: TaskKey) -> float:
        deadline_s = self._runs.deadline_s(key)
        allowed_s = self._times.allowed_s(key[0], deadline_s)
        if self.refusals.refused_by(key):
            # Who refuses it hands it back at once: a slow client needs no more time to keep its lease.
            return allowed_s
        return min(deadline_s, allowed_s * 2.0 ** min(20, self._slowly[key]))

    def _wake(self, lease: Lease) -> None:
        self.next_tick_at = min(self.next_tick_at, lease.lapses_at, lease.expires_at or lease.lapses_at)

    def tick(self, now: float) -> None:
        """Lets leases lapse, those of lost clients expire, and tells the broker that the others are worked on."""
        for lease in self.leases.lapsing(now):
            self.leases.lapse(lease)
            self._slow[lease.id] = lease
            if lease.due_at <= now:
                log.info("client %s takes long", lease.record.client, extra=lease.about)
                self._slowly[lease.key] += 1
                self.fault(lease)
        for lease in self.leases.expired(now):
            log.info("client %s did not come back", lease.record.client, extra=lease.about)
            self.give_back(lease)
        if now >= self._tell_broker_at:
            self._tell_broker_at = now + ACK_WAIT_S / 3
            worked_on = tuple(one for key, one in self._deliveries.items() if key not in self._offered)
            if worked_on:
                self._effects.add(InProgress(worked_on))
        self.next_tick_at = min((self._tell_broker_at, *self.leases.expiries(), *self.leases.lapses()))
        self._go_on()


def _lapsed(holders: Sequence[Lease]) -> bool:
    """Nobody holds the task, or only clients whose time is over."""
    return all(lease.lapsed and not lease.committing for lease in holders)


def _clients(holders: Sequence[Lease]) -> set[str]:
    return {lease.record.client for lease in holders}
