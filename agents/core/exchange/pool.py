"""The broker's deliveries and the clients' leases: tasks go out, come back, and are over.

A task that somebody else may have too goes back to the broker, so that it comes again under an attempt, and so a lease,
of its own. Its first valid update counts. A task's time doubles with each holder that let it pass, up to the round's,
so that slow clients alone get it done at last.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

from agents.core.exchange.candidates import IDLE_S, Candidates, Choice, Fitness, Line
from agents.core.exchange.effects import Ack, Delivery, DropLease, Effects, Fetch, GiveBack, InProgress, KeepLease
from agents.core.exchange.leases import MOST_HOLDERS, Lease, LeaseRecord, LeaseTable, Outcome, TaskKey, key_of
from agents.core.exchange.limits import Limits
from agents.core.exchange.members import Members
from agents.core.exchange.messages import Assignment, TaskRevoked
from agents.core.exchange.pace import Pace
from agents.core.exchange.refusals import Refusals
from agents.core.exchange.runs import Ended, Runs
from agents.core.exchange.standing import Standing
from agents.core.exchange.uploads import Uploads
from agents.words.events import TaskAssigned
from bus.words.envelope import Event

log = logging.getLogger(__name__)
FETCH_S = 5.0
ACK_WAIT_S = 6.0
"""The broker gives a task again that nobody worked on for so long: what a killed gateway had taken and not leased."""
SWEEP_S = 0.1
LOOK_S = 0.05
"""Who has become idle is looked at no more often than that."""


class Pool:
    """Hands the broker's tasks to clients that are ready, each under a lease, and gives back what comes to nothing.

    Attributes:
        leases: all of this gateway's.
        standing: of the clients.
        refusals: of tasks that clients cannot do.
        candidates: the clients that wait for tasks.
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
        self.candidates = Candidates(members, self.leases, self.standing, self.refusals)
        self._pace = Pace(runs, self.refusals)
        self.granted = self.returned = 0
        self.next_tick_at = self._tell_broker_at = now
        self._deliveries: dict[TaskKey, Delivery] = {}
        self._offered: set[TaskKey] = set()
        """Tasks with a holder that went back to the broker for another."""
        self._slow: dict[str, Lease] = {}
        """Shareable leases, by name, in the order in which they became so."""
        self._caught_up = self._fetching = self._sweep = False
        for record in sorted(kept, key=lambda one: -one.attempt):
            if len(self.leases.holders(key_of(record.task))) < MOST_HOLDERS:
                self.leases.restore(record, now)
            else:
                # A process that died between ending one and granting the next; only the newest count.
                effects.add(DropLease(Lease(record)))

    def cause(self, lease: Lease) -> Event | None:
        """The event that assigned the lease's task; none after a restart, until the broker sends it again."""
        delivery = self._deliveries.get(lease.key)
        return None if delivery is None else delivery.stored.event

    # Clients

    def want(self, client: str, now: float) -> None:
        """A connected client wants one more task.

        Raises:
            ProtocolError: ``too_many`` when it has as many as it may.
        """
        self.candidates.want(client, now)
        if self._slow:
            self.next_tick_at = min(self.next_tick_at, now + IDLE_S)
        self._go_on()

    def able(self, key: TaskKey, now: float) -> set[str]:
        """The clients that may do the task yet, as far as anybody can tell."""
        return self.candidates.able(key, self._pace.usual_s(key), now)

    def resume(self, client: str, held: Iterable[str], now: float) -> tuple[str, ...]:
        """The client is back: it waits for nothing yet, and has those leases again that are among what it still holds.

        Those that it gave up go back.
        """
        self._forget(client)
        resumed, given_up = self.leases.resume(client, held)
        for lease in given_up:
            self.give_back(lease)
        for lease in resumed:
            lease.due_at = min(lease.due_at, now + self._pace.allowed_s(lease.key))
            if lease.lapses_at > now:
                self.leases.lapse(lease, lapsed=False)
                lease.backup_at = max(now, min(lease.backup_at, now + self._pace.backup_s(lease.key)))
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
        if self.candidates.forget(client):
            # What the broker was asked for on its behalf may still come, and then goes back.
            self._sweep = True
            self._fetch()

    # Leases

    def give_back(self, lease: Lease, *, delay_s: float = 0.0) -> None:
        """Ends a lease; its task goes back to the pool."""
        self.returned += 1
        self._end(lease, None)
        if self.leases.holders(lease.key):
            if (
                delay_s
                and self.candidates.wanted(lease.key) is not Fitness.NOBODY
                and (delivery := self._deliveries.get(lease.key)) is not None
            ):
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
        self._pace.forget(key)
        self.refusals.forget(key)

    def count(self, lease: Lease) -> None:
        """The lease's update counts: so long does a task take, and so good is its client."""
        if lease.done_at is None:
            return
        if lease.granted_at is not None:
            run = lease.record.task.run
            if self._pace.learn(run, lease.done_at - lease.granted_at):
                self._hurry(run)
        self.standing.credit(lease.record.client, lease.record.token, lease.done_at)

    def _hurry(self, run: str) -> None:
        """How long a task of the run takes is known now: those under way have that time and no more."""
        for lease in self.leases.within((run,)):
            if lease.granted_at is not None and not lease.lapsed:
                lease.due_at = min(lease.due_at, lease.granted_at + self._pace.allowed_s(lease.key))
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
                reason = self._runs.is_over(lease.key, lease.record.sequence) or "the task is over"
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
            if self._runs.is_over(lease.key, lease.record.sequence):
                self.revoke(lease.key)
        self._fetch()

    def _go_on(self) -> None:
        self._offer()
        self._fetch()

    def _offer(self) -> None:
        """As many tasks of shareable leases go back to the broker as clients wait that may have them."""
        if not self._slow or not self._caught_up:
            return
        waiting = self.candidates.waiting()
        del waiting[: len(self._offered)]
        for key in dict.fromkeys(lease.key for lease in self._slow.values()):
            if not waiting:
                break
            delivery = self._deliveries.get(key)
            wanted = self.candidates.wanted(key)
            if delivery is None or key in self._offered or wanted is Fitness.NOBODY:
                continue
            taker = next(
                (one for one in waiting if one[1] >= wanted and self.candidates.fits(key, one[0], wanted)), None
            )
            if taker is None:
                continue
            waiting.remove(taker)
            self._offered.add(key)
            self._effects.add(GiveBack(delivery, 0.0))

    def _fetch(self) -> None:
        if self._fetching or not self._caught_up:
            return
        wanted = self.candidates.room()
        if wanted or self._sweep:
            self._fetching, self._sweep = True, False
            self._effects.add(Fetch(max(1, wanted), FETCH_S if wanted else SWEEP_S))

    def fetched(self, deliveries: Sequence[Delivery], now: float) -> None:
        """What a fetch brought."""
        self._fetching = False
        line = self.candidates.line()
        for delivery in deliveries:
            self._hand_out(delivery, line, now)
        self._go_on()

    def _hand_out(self, delivery: Delivery, line: Line, now: float) -> None:
        task = delivery.stored.event.data
        assert isinstance(task, TaskAssigned)
        key = key_of(task)
        self._offered.discard(key)
        holders = self.leases.holders(key)
        if self._runs.is_over(key, delivery.stored.sequence):
            self._deliveries.pop(key, None)
            self._settle(key)
            self._effects.add(Ack(delivery))
            return
        if not holders:
            self.candidates.open_task(now)
        if (choice := self.candidates.choose(key, line)) is not None:
            if (older := choice.instead_of) is not None:
                self.returned += 1
                self._end(older, None)
                self._tell(older, "it took too long; others do it")
            self._grant(delivery, task, choice, now)
        elif holders:
            # Sent again because this gateway or its connection to the broker was away, or nobody waits any more.
            self._deliveries[key] = delivery
        else:
            self._effects.add(GiveBack(delivery, 0.0))

    def _grant(self, delivery: Delivery, task: TaskAssigned, choice: Choice, now: float) -> None:
        client, connection = choice.client, choice.connection
        record = LeaseRecord(
            task=task,
            client=client,
            token=connection.token,
            sequence=delivery.stored.sequence,
            attempt=delivery.attempt,
        )
        key = key_of(task)
        lease = self.leases.grant(
            record, granted_at=now, due_at=now + self._pace.allowed_s(key), backup_at=now + self._pace.backup_s(key)
        )
        lease.address = connection.address
        self._deliveries[lease.key] = delivery
        self.granted += 1
        self._wake(lease)
        self._effects.add(KeepLease(lease))
        self._effects.say(connection, Assignment(lease=lease.id, task=task))

    # Time

    def _wake(self, lease: Lease) -> None:
        self.next_tick_at = min(
            self.next_tick_at, lease.lapses_at, lease.backup_at, lease.expires_at or lease.lapses_at
        )

    def tick(self, now: float) -> None:
        """Lets leases be shared, lapse, and of lost clients expire; tells the broker that the others are worked on."""
        for lease in self.leases.taking_long(now):
            self._pace.lengthen(lease)
            if lease.backup_at <= now:
                self.leases.share(lease)
                self._slow[lease.id] = lease
        for lease in self.leases.lapsing(now):
            self._pace.lengthen(lease)
            if lease.lapses_at > now:
                continue
            self.leases.lapse(lease)
            self._slow[lease.id] = lease
            if lease.due_at <= now:
                log.info("client %s takes long", lease.record.client, extra=lease.about)
                self._pace.passed(lease.key)
                self.fault(lease)
        for lease in self.leases.expired(now):
            log.info("client %s did not come back", lease.record.client, extra=lease.about)
            self.give_back(lease)
        if now >= self._tell_broker_at:
            self._tell_broker_at = now + ACK_WAIT_S / 3
            worked_on = tuple(one for key, one in self._deliveries.items() if key not in self._offered)
            if worked_on:
                self._effects.add(InProgress(worked_on))
        idle_at = self.candidates.notice_idle(now)
        self.next_tick_at = min((self._tell_broker_at, *self.leases.expiries(), *self.leases.changes()))
        if self._slow:
            self.next_tick_at = min(self.next_tick_at, max(idle_at, now + LOOK_S))
        self._go_on()
