"""Does what the conversation wants done: moves frames, bytes, tasks and events between it, clients, broker and disk."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack, ExitStack, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Self

from agents.core.exchange import effects
from agents.core.exchange.access import AccessRefusedError
from agents.core.exchange.connections import Connection
from agents.core.exchange.conversation import Conversation
from agents.core.exchange.messages import MAX_SLOTS, Hello
from agents.core.exchange.pool import ACK_WAIT_S
from agents.gateway.access import Access
from agents.gateway.errands import Errands
from agents.gateway.outbox import Outbox
from agents.gateway.run_documents import RunDocuments
from agents.gateway.settings import GatewaySettings
from agents.gateway.spool import Spool
from agents.gateway.updates import Updates
from agents.runtime.past import read_past
from bus.client import Bus, CaughtUp
from bus.process.crash_points import crash_point
from bus.process.failures import raise_first
from bus.words.subjects import EVENTS, events_of_type

log = logging.getLogger(__name__)
DURABLE = "gateway"
LAG_S = 10.0


@dataclass
class Line:
    """What belongs to a connection on this side; ``token`` holds its place with those whom the token's end is told."""

    outbox: Outbox
    address: str
    since: datetime = field(default_factory=lambda: datetime.now(UTC))
    rested: asyncio.Event = field(default_factory=asyncio.Event)
    token: ExitStack = field(default_factory=ExitStack)


class Hub:
    """Use as ``async with Hub(...)``; it follows the stream, and does what the conversation says, meanwhile."""

    def __init__(self, bus: Bus, settings: GatewaySettings) -> None:
        self.bus = bus
        self.settings = settings
        self.access = Access(settings)
        self.spool = Spool(settings.spool_dir)
        self.conversation = Conversation(settings, self.spool.load(), time.monotonic())
        self.runs = self.conversation.runs
        self._documents = RunDocuments(bus, self.runs)
        self._updates = Updates(bus, self.spool)
        self._lines: dict[Connection, Line] = {}
        self._moved = asyncio.Condition()
        self._sooner = asyncio.Event()
        self._wakes_at = 0.0
        self._stopping = False
        self._waits: set[asyncio.Task[None]] = set()
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as opening:
            consumer = await opening.enter_async_context(
                self.bus.pull(
                    DURABLE,
                    events_of_type("task.assigned"),
                    ack_wait_s=ACK_WAIT_S,
                    max_deliver=-1,
                    max_ack_pending=self.settings.max_clients * MAX_SLOTS,
                )
            )
            self._errands = Errands(self.bus, consumer, self._updates, self.conversation, self.reached)
            await opening.enter_async_context(self.access.following(self.bus))
            self._group = await opening.enter_async_context(asyncio.TaskGroup())
            opening.callback(self._stop)
            self._wait_for(self._follow())
            self._wait_for(self._keep_time())
            self._stack = opening.pop_all()
        return self

    async def __aexit__(self, *exc: object) -> bool | None:
        try:
            return await self._stack.__aexit__(*exc)  # type: ignore[arg-type]
        except BaseExceptionGroup as failures:
            raise_first(failures)

    def _stop(self) -> None:
        """What only waits is cut; what is being done is done first."""
        self._stopping = True
        for task in self._waits:
            task.cancel()

    def _wait_for(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._group.create_task(work)
        self._waits.add(task)
        task.add_done_callback(self._waits.discard)

    # What others look at

    @property
    def is_caught_up(self) -> bool:
        """Everything has been read that the stream had of open runs at the start."""
        return self.conversation.is_caught_up

    async def reached(self, sequence: int, *, within_s: float = LAG_S) -> None:
        """Waits until everything up to ``sequence`` has been read.

        Raises:
            TimeoutError: it is not after ``within_s``.
        """
        await self._until(lambda: self.runs.sequence >= sequence, within_s)

    async def recalled(self, *, within_s: float = LAG_S) -> None:
        """Waits until every run there has been is known.

        Raises:
            TimeoutError: it is not after ``within_s``.
        """
        await self._until(lambda: self.runs.knows_all, within_s)

    async def _until(self, holds: Callable[[], bool], within_s: float) -> None:
        if not holds():
            async with asyncio.timeout(within_s), self._moved:
                await self._moved.wait_for(holds)

    def listing(self) -> list[dict[str, str | int]]:
        """The connected clients, for an operator."""
        return [
            {
                "client": name,
                "engine": connection.hello.engine,
                "token": connection.grant.name,
                "since": self._lines[connection].since.isoformat(timespec="seconds"),
                "leases": len(self.conversation.pool.leases.of(name)),
            }
            for name, connection in self.conversation.members
            if connection.hello is not None and connection.grant is not None
        ]

    # Connections

    def connect(self, outbox: Outbox, address: str) -> Connection:
        """A client is connected."""
        connection = self.conversation.presence.connected(address)
        self._lines[connection] = Line(outbox, address)
        return connection

    async def receive(self, connection: Connection, frame: str | bytes) -> float:
        """Takes one frame in, and returns when the next may come: after so many seconds more."""
        line = self._lines[connection]
        self.conversation.received(connection, frame, time.monotonic())
        self._do_all()
        while connection.busy:
            line.rested.clear()
            await line.rested.wait()
        # Who sends too much is read more slowly; the bytes wait on the client's side.
        return self.conversation.presence.pause_s(connection, len(frame), time.monotonic())

    def patience_s(self, connection: Connection) -> float:
        """How long the connection may be silent from now on."""
        return self.conversation.presence.patience_s(connection)

    def silent(self, connection: Connection) -> None:
        """Nothing came for as long as the conversation is patient."""
        self.conversation.presence.silent(connection, time.monotonic())
        self._do_all()

    def disconnect(self, connection: Connection) -> None:
        """The connection is gone."""
        line = self._lines.pop(connection)
        self.conversation.presence.left(connection, time.monotonic())
        self._do_all()
        line.token.close()

    def close_all(self) -> None:
        """Says goodbye to everybody."""
        self.conversation.presence.close_all(time.monotonic())
        self._do_all()

    # What runs all the time

    async def _follow(self) -> None:
        past = await read_past(self.bus)
        self.runs.begin(past.after)
        self._wait_for(self._recall(past.after))
        async with self.bus.follow(EVENTS, after=past.after) as items:
            async for item in items:
                if isinstance(item, CaughtUp):
                    self.conversation.caught_up()
                else:
                    self.conversation.took_place(item, await self._documents.of(item.event.data))
                self._do_all()
                await self._tell_moved()

    async def _recall(self, after: int) -> None:
        await self._documents.recall(after)
        await self._tell_moved()

    async def _tell_moved(self) -> None:
        async with self._moved:
            self._moved.notify_all()

    async def _keep_time(self) -> None:
        while True:
            self.conversation.tick(time.monotonic())
            self._do_all()
            self._wakes_at = self.conversation.next_tick_at
            self._sooner.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._wakes_at - time.monotonic()):
                    await self._sooner.wait()

    # Effects

    def _do_all(self) -> None:
        while (effect := self.conversation.effects.next()) is not None:
            self._do(effect)
        if self.conversation.next_tick_at < self._wakes_at:
            self._sooner.set()

    def _do(self, effect: effects.Effect) -> None:
        """Does what takes no time, and begins what takes some."""
        match effect:
            case effects.Say(connection, message):
                if (line := self._lines.get(connection)) is not None:
                    if not line.outbox.say(message):
                        self.conversation.presence.left(connection, time.monotonic())
                    # What it waited for may have been answered by something else than its own errand.
                    line.rested.set()
            case effects.Close(connection, code, reason):
                if (line := self._lines.get(connection)) is not None:
                    line.outbox.close(code, reason)
            case effects.CheckToken(connection, hello):
                self._group.create_task(self._check_token(connection, hello))
            case effects.KeepLease(lease):
                crash_point("gateway.delivered")
                try:
                    self.spool.keep(lease)
                except OSError as error:
                    # The lease is good without its file; only a restart of the gateway would forget it.
                    log.error("the spool does not take a lease: %s", error, extra=lease.about)
                crash_point("gateway.leased")
            case effects.DropLease(lease):
                self.spool.drop(lease)
            case effects.CloseUpload(upload):
                self._updates.close(upload)
            case effects.Fetch() | effects.AwaitSequence():
                if not self._stopping:
                    self._wait_for(self._run(effect))
            case effects.CheckUpdate():
                crash_point("gateway.committed")
                self._group.create_task(self._run(effect))
            case _:
                self._group.create_task(self._run(effect))

    async def _check_token(self, connection: Connection, hello: Hello) -> None:
        presence, line = self.conversation.presence, self._lines.get(connection)
        if line is None:
            return

        def ended(reason: str) -> None:
            presence.token_ended(connection, reason, time.monotonic())
            self._do_all()

        try:
            grant = await self.access.check(hello.token, "train", line.address)
        except AccessRefusedError as error:
            presence.turned_away(connection, error, time.monotonic())
        else:
            if connection in self._lines:
                line.token.enter_context(grant.ending(ended))
                presence.admitted(connection, hello, grant, time.monotonic())
        self._do_all()
        line.rested.set()

    async def _run(self, effect: effects.Effect) -> None:
        waited = await self._errands.do(effect)
        self._do_all()
        if waited is not None and (line := self._lines.get(waited)) is not None:
            line.rested.set()
