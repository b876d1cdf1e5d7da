"""The gateway's centre: which clients are there, which tasks they hold, and what the stream says about both."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Self

from agents.core.exchange.access import OPEN, Grant
from agents.core.exchange.leases import Lease, LeaseRecord, LeaseTable, Outcome, key_of
from agents.core.exchange.messages import MAX_SLOTS, Assignment, Hello, ProtocolError, TaskRevoked
from agents.gateway.access import Access
from agents.gateway.facts import Ended, Facts
from agents.gateway.members import Member, Members
from agents.gateway.outbox import Outbox
from agents.gateway.settings import GatewaySettings
from agents.gateway.spool import Spool
from agents.words.events import RunStarted, TaskAssigned
from agents.words.run_config import RunDataset
from bus.client import Bus, CaughtUp
from bus.errors import FedbusError
from bus.process.crash_points import crash_point
from bus.words.subjects import EVENTS, events_of_type
from bus.work.consumer import Delivery, PullConsumer

log = logging.getLogger(__name__)
DURABLE = "gateway"
_FETCH_S = 5.0
_SWEEP_S = 0.1
_TICK_S = 0.25


@dataclass(frozen=True)
class HubStatistics:
    """What the gateway has at hand now, and what it did so far."""

    clients: int
    leases: int
    ready: int
    spooled_bytes: int
    granted: int
    returned: int
    accepted: int
    rejected: int


class Hub:
    """Use as ``async with Hub(...)``; it follows the stream, deals tasks and lets leases expire meanwhile."""

    def __init__(self, bus: Bus, settings: GatewaySettings) -> None:
        self.bus = bus
        self.settings = settings
        self.facts = Facts()
        self.access = Access(settings)
        self.members = Members(settings)
        self.leases = LeaseTable(settings.lease_s)
        self.spool = Spool(settings.spool_dir)
        self.spooled_bytes = self.granted = self.returned = self.accepted = self.rejected = 0
        self._ready: deque[str] = deque()
        self._deal_now = asyncio.Event()
        self._sweep = False
        self._deliveries: dict[str, Delivery] = {}
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        for record in self.spool.load():
            self.leases.grant(record, expires_at=time.monotonic() + self.settings.lease_s)
        async with AsyncExitStack() as opening:
            consumer = await opening.enter_async_context(
                self.bus.pull(
                    DURABLE,
                    events_of_type("task.assigned"),
                    ack_wait_s=self.settings.lease_s + 5.0,
                    max_deliver=-1,
                    max_ack_pending=self.settings.max_clients * MAX_SLOTS,
                )
            )
            await opening.enter_async_context(self.access.following(self.bus))
            self.group = await opening.enter_async_context(asyncio.TaskGroup())
            running = [
                self.group.create_task(self._follow()),
                self.group.create_task(self._deal(consumer)),
                self.group.create_task(self._keep_leases()),
            ]
            opening.callback(lambda: [task.cancel() for task in running])
            self._stack = opening.pop_all()
        return self

    async def __aexit__(self, *exc: object) -> bool | None:
        return await self._stack.__aexit__(*exc)  # type: ignore[arg-type]

    def statistics(self) -> HubStatistics:
        """What is at hand now, and what was done so far."""
        return HubStatistics(
            clients=len(self.members),
            leases=len(self.leases),
            ready=len(self._ready),
            spooled_bytes=self.spooled_bytes,
            granted=self.granted,
            returned=self.returned,
            accepted=self.accepted,
            rejected=self.rejected,
        )

    def listing(self) -> list[dict[str, str | int]]:
        """The connected clients, for an operator."""
        return [
            {
                "client": one.name,
                "engine": one.hello.engine,
                "token": one.grant.name,
                "since": one.since.isoformat(timespec="seconds"),
                "leases": len(self.leases.of(one.name)),
            }
            for one in self.members
        ]

    # Clients

    def join(self, hello: Hello, outbox: Outbox, grant: Grant) -> tuple[Member, tuple[str, ...]]:
        """Lets a client in, in place of an older connection of its name; answers with the leases that it has again.

        Raises:
            ProtocolError: it is shut out, its name is another token's, or the gateway or its token is full.
        """
        name, member = hello.client, Member(hello, outbox, grant)
        older = self.members.get(name)
        holders = {older.grant.name} if older else {lease.record.token for lease in self.leases.of(name)}
        if holders - {grant.name, OPEN}:
            raise ProtocolError("name_taken", "a client with another token has this name", fatal=True)
        if self.members.admit(member, lambda reason: self._turn_out(member, reason)) is not None:
            self._forget_ready(name)
        resumed, given_up = self.leases.resume(name, hello.resume)
        for lease in given_up:
            self.give_back(lease)
        return member, tuple(lease.id for lease in resumed)

    def leave(self, member: Member) -> None:
        """The client's connection is gone; its leases wait for its return unless a newer connection has them."""
        if self.members.remove(member):
            self._forget_ready(member.name)
            self.leases.detach(member.name, time.monotonic())

    def _turn_out(self, member: Member, reason: str) -> None:
        """The client's token ended: it cannot come back, so its tasks need not wait for it."""
        member.dismiss("token", reason)
        self._take_back(member)

    def dismiss(self, member: Member) -> None:
        """The client said goodbye."""
        member.outbox.close(1000, "goodbye")
        self._take_back(member)

    def _take_back(self, member: Member) -> None:
        for lease in self.leases.of(member.name):
            if not lease.committing:
                self.give_back(lease)

    def ready(self, member: Member) -> None:
        """The client wants one more task.

        Raises:
            ProtocolError: it has as many as it may.
        """
        name = member.name
        if len(self.leases.of(name)) + self._ready.count(name) >= MAX_SLOTS:
            raise ProtocolError("too_many", f"a client holds or waits for at most {MAX_SLOTS} tasks")
        self._ready.append(name)
        self._deal_now.set()

    def tell(self, client: str, message: Assignment | TaskRevoked) -> None:
        """Says something to a client if it is there."""
        if (member := self.members.get(client)) is not None:
            member.outbox.say(message)

    def close_all(self) -> None:
        """Says goodbye to everybody; the leases stay for the next process."""
        for member in self.members:
            member.outbox.close(1012, "the gateway stops")

    def _forget_ready(self, client: str) -> None:
        if client in self._ready:
            self._ready = deque(name for name in self._ready if name != client)
            # What the broker was asked for on its behalf may still come, and then goes back.
            self._sweep = True
            self._deal_now.set()

    def note_rejection(self, client: str) -> bool:
        """Counts a rejected update; true when the client has had enough of them in a row."""
        self.rejected += 1
        return self.members.count_rejection(client)

    def note_acceptance(self, client: str) -> None:
        """Counts an accepted update and forgives the rejected ones before."""
        self.accepted += 1
        self.members.forgive(client)

    # Leases

    def delivery(self, lease: Lease) -> Delivery | None:
        """The broker's delivery of the lease's task; none after a restart, until the broker sends it again."""
        return self._deliveries.get(lease.id)

    def give_back(self, lease: Lease, *, delay_s: float = 0.0) -> None:
        """Ends a lease; its task goes back to the pool."""
        delivery = self._end(lease, None)
        self.returned += 1
        if delivery is not None:
            self.group.create_task(delivery.nak(delay_s))

    def finish(self, lease: Lease, outcome: Outcome) -> None:
        """Ends a lease whose task nobody has to do any more."""
        delivery = self._end(lease, outcome)
        if delivery is not None:
            self.group.create_task(delivery.ack())

    def _end(self, lease: Lease, outcome: Outcome | None) -> Delivery | None:
        self.leases.end(lease, outcome)
        self.spool.drop(lease)
        return self._deliveries.pop(lease.id, None)

    def _revoke(self, ended: Ended) -> None:
        for lease in self.leases:
            if lease.key[: len(ended)] == ended and not lease.committing:
                self.finish(lease, "revoked")
                reason = self.facts.is_over(lease.key) or "the task is over"
                self.tell(lease.record.client, TaskRevoked(lease=lease.id, reason=reason))

    # What runs all the time

    async def _follow(self) -> None:
        async with self.bus.follow(EVENTS) as items:
            async for item in items:
                if isinstance(item, CaughtUp):
                    for lease in self.leases:
                        if self.facts.is_over(lease.key):
                            self._revoke(lease.key)
                    self.facts.caught_up.set()
                    continue
                if isinstance(item.event.data, RunStarted):
                    self.facts.open(item.event.data, await self._dataset(item.event.data))
                ended = self.facts.fold(item)
                await self.facts.advance(item.sequence)
                if ended is not None and self.facts.caught_up.is_set():
                    self._revoke(ended)

    async def _dataset(self, started: RunStarted) -> RunDataset | None:
        try:
            return RunDataset.model_validate_json(await self.bus.objects.get(started.dataset))
        except (FedbusError, ValueError) as error:
            log.warning("the dataset cannot be read, so clients may not either: %s", error, extra={"run": started.run})
            return None

    async def _deal(self, consumer: PullConsumer) -> None:
        await self.facts.caught_up.wait()
        while True:
            await self._deal_now.wait()
            self._deal_now.clear()
            while self._ready or self._sweep:
                self._sweep = False
                wanted = len(self._ready)
                for delivery in await consumer.fetch(max(1, wanted), _FETCH_S if wanted else _SWEEP_S):
                    self._hand_out(delivery)

    def _hand_out(self, delivery: Delivery) -> None:
        task = delivery.stored.event.data
        assert isinstance(task, TaskAssigned)
        key = key_of(task)
        if self.facts.is_over(key):
            self.group.create_task(delivery.ack())
        elif (held := self.leases.holder(key)) is not None:
            # Sent again because this gateway or its connection to the broker was away for long.
            self._deliveries[held.id] = delivery
        elif not self._ready:
            self.group.create_task(delivery.nak(0))
        else:
            self._grant(delivery, task)

    def _grant(self, delivery: Delivery, task: TaskAssigned) -> None:
        crash_point("gateway.delivered")
        client = self._ready.popleft()
        member = self.members.get(client)
        record = LeaseRecord(
            task=task,
            client=client,
            token=member.grant.name if member else OPEN,
            sequence=delivery.stored.sequence,
            attempt=delivery.attempt,
        )
        lease = self.leases.grant(record)
        self._deliveries[lease.id] = delivery
        self.granted += 1
        try:
            self.spool.keep(lease)
        except OSError as error:
            # The lease is good without its file; only a restart of the gateway would forget it.
            log.error("the spool does not take a lease: %s", error, extra=where(lease))
        crash_point("gateway.leased")
        self.tell(client, Assignment(lease=lease.id, task=task))

    async def _keep_leases(self) -> None:
        """Tells the broker that the leased tasks are worked on, and lets leases of lost clients expire."""
        tell_broker_at = 0.0
        while True:
            now = time.monotonic()
            for lease in self.leases.expired(now):
                log.info("client %s did not come back", lease.record.client, extra=where(lease))
                self.give_back(lease)
            if now >= tell_broker_at:
                tell_broker_at = now + self.settings.lease_s / 3
                for delivery in list(self._deliveries.values()):
                    await delivery.in_progress()
            await asyncio.sleep(min(_TICK_S, self.settings.lease_s / 10))


def where(lease: Lease) -> dict[str, object]:
    """Run, round and user of a lease, for the log."""
    task = lease.record.task
    return {"run": task.run, "round": task.round, "user": task.user}
