"""A gateway without its shell: does what the conversation wants done in a world in memory, and may die at any of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from agents.core.exchange import effects
from agents.core.exchange.access import Grant
from agents.core.exchange.connections import Connection
from agents.core.exchange.conversation import Conversation
from agents.core.exchange.leases import LeaseTable
from agents.core.exchange.limits import Limits
from agents.core.exchange.messages import (
    Assignment,
    Hello,
    TaskRevoked,
    UploadAccepted,
    UploadOffset,
    UploadRejected,
    Welcome,
)
from agents.core.exchange.pool import ACK_WAIT_S
from agents.core.exchange.upload_rules import UpdateRefusedError, judge
from agents.core.learning.encodings import encode_update
from agents.words.events import Payload, TaskAssigned, UpdateMetrics
from bus.words.values import Frozen, Ref
from tests.builders import PARAMETERS, assigned, config, planned, ref_of, run_started
from tests.property.exchange_world import Broker, Delivered, Disk, Ledger

LEASE_S = 30.0
CLIENTS, TOKENS, USERS = 3, 2, 3
LIMITS = Limits(lease_s=LEASE_S, max_rejections=3, shut_out_s=5.0, max_spool_bytes=48, max_errors=6, max_token_tasks=8)
FINE = UpdateMetrics(predictions=(0, 0), examples=2, mismatched_images=2, trained_images=14)
WRONG = FINE.model_copy(update={"examples": 3})
AT_ONCE = (
    effects.Say,
    effects.Close,
    effects.CheckToken,
    effects.KeepLease,
    effects.DropLease,
    effects.CloseUpload,
)


@dataclass(eq=False)
class Line:
    """One connection as its client sees it: what it has in hand, and its uploads by number."""

    name: str
    grant: Grant
    connection: Connection
    hands: dict[str, TaskAssigned] = field(default_factory=dict)
    uploads: dict[int, tuple[str, bytes, int]] = field(default_factory=dict)


class _Crash(Exception):
    """The gateway's process dies."""


def update_of(name: str, *, fine: bool = True) -> bytes:
    """An update that only this client would send."""
    value = np.float32(1 + int(name[1:])) if fine else np.float32(np.nan)
    return encode_update(np.full(PARAMETERS, value, np.float32), "float32") if fine else value.tobytes() * PARAMETERS


class Simulation:
    """One gateway process after the other in the same world, and its clients as they see themselves."""

    def create(self) -> None:
        """A world with one run of two planned rounds, and a first process that has read nothing."""
        self.now = 100.0
        self.broker, self.disk = Broker(), Disk()
        self.ledger = Ledger(self.broker)
        self.grants = [Grant(f"token{number}", "train") for number in range(TOKENS)]
        self.fuse: int | None = None
        self.reads_at_once = False
        self.number = 0
        self.leases_ever: set[str] = set()
        self.begin_process()
        self.say(run_started(config(rounds=2, users=USERS)))
        for number in (1, 2):
            self.say(planned(USERS, USERS, round=number))
            for user in range(USERS):
                self.say(assigned(f"u{user}", round=number))

    def begin_process(self) -> None:
        """A gateway starts from what the one before left."""
        self.core = Conversation(LIMITS, list(self.disk.kept.values()), self.now)
        self.pending: list[effects.Effect] = []
        self.lines: dict[Connection, Line] = {}
        self.closed: set[Connection] = set()
        self.disk.open.clear()
        self.broker.inbox.clear()
        for grant in self.grants:
            grant.clients = 0
        self.read, self.caught_up_at = 0, len(self.ledger.events)
        self.published: Counter[str] = Counter()
        self.settle()
        while self.reads_at_once and not self.core.is_caught_up:
            self.read_on()

    def say(self, data: Payload) -> bool:
        return self.ledger.publish(data)

    # What the gateway wants done

    def settle(self) -> None:
        """Does what takes no time; what takes some waits its turn."""
        try:
            while (effect := self.core.effects.next()) is not None:
                self.burn()
                if isinstance(effect, AT_ONCE):
                    self.do_at_once(effect)
                else:
                    self.pending.append(effect)
        except _Crash:
            self.begin_process()

    def burn(self) -> None:
        if self.fuse is not None:
            self.fuse -= 1
            if self.fuse < 0:
                self.fuse = None
                raise _Crash

    def do_at_once(self, effect: effects.Effect) -> None:
        match effect:
            case effects.Say(connection, message):
                assert connection not in self.closed, "something is said after the farewell"
                if connection in self.lines:
                    self.hear(self.lines[connection], message)
            case effects.Close(connection, _, _):
                self.closed.add(connection)
                self.lines.pop(connection, None)
            case effects.CheckToken(connection, hello):
                self.core.presence.admitted(connection, hello, self.lines[connection].grant, self.now)
            case effects.KeepLease(lease):
                self.disk.keep(lease)
            case effects.DropLease(lease):
                self.disk.drop(lease)
            case effects.CloseUpload(upload):
                self.disk.open.discard(upload)

    def hear(self, line: Line, message: Frozen) -> None:
        held = {lease.id: lease.record.task for lease in self.table}
        match message:
            case Welcome(resumed=resumed):
                line.hands = {name: held[name] for name in resumed}
            case Assignment(lease=lease, task=task):
                assert self.core.members.get(line.name) is line.connection, "a task for a client that left"
                line.hands[lease] = task
                self.leases_ever.add(lease)
            case UploadOffset(upload=number, offset=offset):
                lease, data, _ = line.uploads[number]
                line.uploads[number] = (lease, data, offset)
            case TaskRevoked(lease=lease) | UploadRejected(lease=lease):
                line.hands.pop(lease, None)
            case UploadAccepted(lease=lease):
                if lease in line.hands:
                    task = line.hands.pop(lease)
                    (found,) = self.ledger.submitted(task)
                    assert (found.client, found.update) == (line.name, ref_of(update_of(line.name)))
                    assert self.published[lease] == 1

    def do(self, effect: effects.Effect, *, fails: bool) -> None:
        """Does one thing that takes time, and says how it went; the process may die before, between and after."""
        core = self.core
        try:
            self.burn()
            match effect:
                case effects.Fetch(count, _):
                    found = self.broker.fetch(count, self.now, too_many=int(fails))
                    self.burn()
                    core.pool.fetched(found, self.now)
                case effects.Ack(Delivered(stored=stored)):
                    assert isinstance(stored.event.data, TaskAssigned)
                    assert self.ledger.is_over(stored.event.data), "a task is lost"
                    self.broker.settle(stored)
                case effects.GiveBack(delivery, delay_s):
                    self.broker.postpone(delivery.stored, self.now + delay_s)
                case effects.InProgress(deliveries):
                    for delivery in deliveries:
                        self.broker.postpone(delivery.stored, self.now + ACK_WAIT_S)
                case effects.TellProgress(connection, _):
                    core.told(connection)
                case effects.AwaitSequence():
                    core.reached(effect, self.now, in_time=core.runs.sequence >= effect.sequence)
                case effects.OpenUpload(upload):
                    offset = None if fails else self.disk.take_up(upload)
                    self.burn()
                    core.opened(upload, offset, self.now)
                case effects.WriteChunk(upload, offset, data):
                    written = None if fails else self.disk.write(upload, offset, data)
                    self.burn()
                    core.written(upload, written, self.now)
                case effects.CheckUpdate(commit) if not fails:
                    core.commits.checked(commit, self.judged(commit))
                case effects.StoreUpdate(commit) if not fails:
                    core.commits.stored(commit, self.kept(commit))
                case effects.PublishUpdate(commit, event, _):
                    there = self.say(event)
                    self.published[commit.upload.lease.id] += there
                    self.burn()
                    if fails:
                        core.commits.failed(commit)
                    else:
                        core.commits.submitted(commit, not there)
                case effects.PublishRejection(event, _, _, written):
                    if written and not fails:
                        self.say(event)
                    self.burn()
                    core.commits.rejected(effect, self.now, said=not (written and fails))
                case effects.CheckUpdate(commit) | effects.StoreUpdate(commit):
                    core.commits.failed(commit)
        except _Crash:
            self.begin_process()
        self.settle()

    def judged(self, commit: effects.Commit) -> float | UpdateRefusedError:
        data = self.disk.content(commit.upload)
        try:
            return judge(data, commit.metrics, commit.expected)
        except UpdateRefusedError as error:
            return error

    def kept(self, commit: effects.Commit) -> Ref | UpdateRefusedError:
        """What the store says, which hashes what it is given."""
        ref = ref_of(self.disk.content(commit.upload))
        if ref.sha256 != commit.upload.sha256:
            return UpdateRefusedError("digest", "the bytes do not have the digest that was announced")
        return ref

    @property
    def table(self) -> LeaseTable:
        return self.core.pool.leases

    def connect(self, name: str, grant: Grant, *, resumes: bool) -> None:
        connection = self.core.presence.connected()
        mine = [lease.id for lease in self.table.of(name)] if resumes else []
        self.lines[connection] = Line(name, grant, connection)
        hello = Hello(protocol=1, client=name, engine="test", resume=tuple(mine[:8]))
        self.core.received(connection, hello.model_dump_json(), self.now)
        self.settle()

    def send(self, line: Line, message: Frozen | bytes) -> None:
        frame = message if isinstance(message, bytes) else message.model_dump_json()
        self.core.received(line.connection, frame, self.now)
        self.settle()

    # Time, and the stream

    def read_on(self) -> None:
        if self.read == self.caught_up_at and not self.core.is_caught_up:
            self.core.caught_up()
        elif self.read < len(self.ledger.events):
            self.read += 1
            self.core.took_place(self.ledger.events[self.read - 1])
        self.settle()

    def ring(self) -> None:
        if self.core.next_tick_at <= self.now:
            self.core.tick(self.now)
            assert self.core.next_tick_at > self.now
            self.settle()

    def finish(self, *, fetch: bool = False) -> None:
        """Everything that was begun is done; the stream is read to its end."""
        while self.read < len(self.ledger.events) or not self.core.is_caught_up:
            self.read_on()
        fetches, steps = int(fetch), 0
        while any(not isinstance(one, effects.Fetch) for one in self.pending) or (fetches > 0 and self.pending):
            steps += 1
            assert steps < 1_000, "it never comes to rest"
            effect = self.pending.pop(0)
            if isinstance(effect, effects.Fetch):
                fetches -= 1
            self.do(effect, fails=False)
            while self.read < len(self.ledger.events):
                self.read_on()

    def tasks(self) -> dict[tuple[int, str], TaskAssigned]:
        found = [self.task_of(one.stored.event.data) for one in self.broker.tasks.values()]
        return {(task.round, task.user): task for task in found}

    @staticmethod
    def task_of(data: Payload) -> TaskAssigned:
        assert isinstance(data, TaskAssigned)
        return data
