"""The gateway's conversation under any order of words, answers and crashes: no task is lost, stuck, or held by two."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from agents.core.exchange import commits, effects
from agents.core.exchange.access import Grant
from agents.core.exchange.connections import Connection
from agents.core.exchange.conversation import Conversation
from agents.core.exchange.leases import MOST_HOLDERS, LeaseTable
from agents.core.exchange.limits import Limits
from agents.core.exchange.messages import (
    Assignment,
    Hello,
    Leave,
    ProgressMessage,
    Ready,
    TaskFailed,
    TaskRevoked,
    UploadAccepted,
    UploadBegin,
    UploadCommit,
    UploadOffset,
    UploadRejected,
    Welcome,
    encode_chunk,
)
from agents.core.exchange.pool import ACK_WAIT_S
from agents.core.exchange.upload_rules import UpdateRefusedError, judge
from agents.core.learning.encodings import encode_update
from agents.words.events import Payload, RoundClosed, RunFinished, TaskAssigned, UpdateMetrics
from bus.words.values import Frozen, Ref
from tests.builders import PARAMETERS, RUN, assigned, config, planned, ref_of, run_started, submitted
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


class ConversationMachine(RuleBasedStateMachine):
    """Clients, a broker, a stream and a disk around a gateway that may die before and after whatever it does."""

    @initialize()
    def start(self) -> None:
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
        self.connect("c0", self.grants[0], resumes=False)
        self.finish()

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
                task = line.hands.pop(lease, None)
                if task is not None:
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
                    core.commits.stored(commit, self.stored(commit))
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

    def judged(self, commit: effects.Commit) -> UpdateRefusedError | None:
        data = self.disk.content(commit.upload)
        try:
            judge(data, commit.metrics, commit.expected)
        except UpdateRefusedError as error:
            return error
        return None

    def stored(self, commit: effects.Commit) -> Ref | UpdateRefusedError:
        ref = ref_of(self.disk.content(commit.upload))
        return ref if ref.sha256 == commit.upload.sha256 else UpdateRefusedError("digest", "other bytes")

    # What happens

    @rule(client=st.integers(0, CLIENTS - 1), token=st.sampled_from([None, None, None, 0, 1]), resumes=st.booleans())
    def a_client_connects(self, client: int, token: int | None, resumes: bool) -> None:
        self.connect(f"c{client}", self.grants[client % TOKENS if token is None else token], resumes=resumes)

    def connect(self, name: str, grant: Grant, *, resumes: bool) -> None:
        connection = self.core.presence.connected()
        mine = [lease.id for lease in self.table.of(name)] if resumes else []
        self.lines[connection] = Line(name, grant, connection)
        hello = Hello(protocol=1, client=name, engine="test", resume=tuple(mine[:8]))
        self.core.received(connection, hello.model_dump_json(), self.now)
        self.settle()

    @property
    def table(self) -> LeaseTable:
        return self.core.pool.leases

    @rule(data=st.data(), silent=st.booleans())
    def a_connection_is_lost(self, data: st.DataObject, silent: bool) -> None:
        if not self.lines:
            return
        # Also while what the client said last is still being done.
        line = data.draw(st.sampled_from(list(self.lines.values())))
        if silent:
            self.core.presence.silent(line.connection, self.now)
        else:
            del self.lines[line.connection]
            self.core.presence.left(line.connection, self.now)
        self.settle()

    @rule(data=st.data(), words=st.integers(1, 6))
    def a_client_speaks(self, data: st.DataObject, words: int) -> None:
        for _ in range(words):
            lines = [line for line in self.lines.values() if not line.connection.busy]
            if lines:
                line = data.draw(st.sampled_from(lines))
                self.speak(line, data.draw(st.sampled_from(self.words_of(line))), data)

    @rule(client=st.integers(0, CLIENTS - 1), steps=st.integers(1, 16), data=st.data())
    def an_honest_client_goes_on(self, client: int, steps: int, data: st.DataObject) -> None:
        """As far as so many steps lead, its own words and what the gateway wants done counted alike."""
        for _ in range(steps):
            line = next((line for line in self.lines.values() if line.name == f"c{client}"), None)
            if line is None:
                self.connect(f"c{client}", self.grants[client % TOKENS], resumes=True)
            elif not line.connection.busy and (word := self.next_word(line)):
                self.speak(line, word, data)
            elif self.pending:
                self.do(self.pending.pop(0), fails=data.draw(st.integers(0, 9)) == 9)

    def next_word(self, line: Line) -> str | None:
        busy_with = next((lease for lease, _, _ in reversed(line.uploads.values()) if lease in line.hands), None)
        if busy_with is not None:
            lease = self.table.get(busy_with, line.name)
            if lease is not None and lease.committing:
                return None
            return "chunk" if self.left_to_send(line) else "commit"
        if line.hands:
            return "begin"
        return None if any(isinstance(one, effects.Fetch) for one in self.pending) else "ready"

    def words_of(self, line: Line) -> list[str]:
        """What a client may say, whether it makes sense or not."""
        words = ["ready", "goodbye", "begin late"]
        if line.hands:
            words += ["failed", "progress", "begin"]
        if line.uploads:
            words += ["chunk", "commit"]
        return words

    def left_to_send(self, line: Line) -> bytes:
        _, content, offset = line.uploads[max(line.uploads)]
        return content[offset:]

    def speak(self, line: Line, word: str, data: st.DataObject) -> None:
        match word:
            case "ready":
                self.send(line, Ready())
            case "goodbye":
                self.send(line, Leave())
                assert all(lease.committing for lease in self.table.of(line.name) if line.connection in self.closed)
            case "progress":
                lease = data.draw(st.sampled_from(sorted(line.hands)))
                self.send(line, ProgressMessage(lease=lease, phase="upload", images_seen=1))
            case "failed":
                lease = data.draw(st.sampled_from(sorted(line.hands)))
                if not any(one.committing for one in self.table.of(line.name) if one.id == lease):
                    del line.hands[lease]
                self.send(line, TaskFailed(lease=lease, reason="no"))
            case "begin" | "begin late":
                names = sorted(line.hands if word == "begin" else self.leases_ever)
                if names:
                    self.begin(line, data.draw(st.sampled_from(names)), data)
            case "chunk":
                number, wrong = max(line.uploads), data.draw(st.sampled_from([0, 0, 0, 0, 1]))
                if left := self.left_to_send(line):
                    part = left[: data.draw(st.sampled_from([5, 16, 16]))]
                    self.send(line, encode_chunk(number, line.uploads[number][2] + wrong, part))
            case "commit":
                metrics = data.draw(st.sampled_from([FINE, FINE, FINE, WRONG]))
                number = max(line.uploads)
                self.send(line, UploadCommit(lease=line.uploads[number][0], upload=number, metrics=metrics))

    def begin(self, line: Line, lease: str, data: st.DataObject) -> None:
        kind = data.draw(st.sampled_from(["fine", "fine", "fine", "fine", "bad", "short", "digest"]))
        content = update_of(line.name, fine=kind != "bad")[: 15 if kind == "short" else None]
        digest = "0" * 64 if kind == "digest" else hashlib.sha256(content).hexdigest()
        self.number += 1
        line.uploads[self.number] = (lease, content, 0)
        self.send(line, UploadBegin(lease=lease, upload=self.number, size=len(content), sha256=digest))

    def send(self, line: Line, message: Frozen | bytes) -> None:
        frame = message if isinstance(message, bytes) else message.model_dump_json()
        self.core.received(line.connection, frame, self.now)
        self.settle()

    @rule(data=st.data(), count=st.integers(1, 12), fails=st.sampled_from([False, False, False, True]))
    def something_is_done(self, data: st.DataObject, count: int, fails: bool) -> None:
        for _ in range(count):
            if self.pending:
                self.do(self.pending.pop(data.draw(st.integers(0, len(self.pending) - 1))), fails=fails)

    @rule(count=st.integers(1, 20))
    def the_stream_is_read(self, count: int) -> None:
        for _ in range(count):
            self.read_on()

    def read_on(self) -> None:
        if self.read == self.caught_up_at and not self.core.is_caught_up:
            self.core.caught_up()
        elif self.read < len(self.ledger.events):
            self.read += 1
            self.core.took_place(self.ledger.events[self.read - 1])
        self.settle()

    @rule(
        kind=st.sampled_from(["nothing", "nothing", "update", "round", "run"]),
        number=st.integers(1, 2),
        user=st.integers(0, 2),
    )
    def something_ends(self, kind: str, number: int, user: int) -> None:
        if kind == "update":
            self.say(submitted(f"u{user}", round=number))
        elif kind == "round":
            self.say(RoundClosed(run=RUN, round=number, reason="all", accepted=0, missing=0, rejected=0, through=1))
        elif kind == "run" and number == user == 1:
            self.say(RunFinished(run=RUN, status="cancelled", rounds=0))

    @rule(equal=st.booleans())
    def somebody_is_faster(self, equal: bool) -> None:
        """Another gateway, or this one before it died, says what is about to be said."""
        for effect in self.pending:
            if isinstance(effect, effects.PublishUpdate):
                self.say(effect.event if equal else submitted(effect.event.user, round=effect.event.round))
                return

    @rule(token=st.sampled_from([None, None, None, 0, 1]))
    def a_token_ends(self, token: int | None) -> None:
        if token is None:
            return
        ended, self.grants[token] = self.grants[token], Grant(f"token{token}", "train")
        while line := next((line for line in self.lines.values() if line.grant is ended), None):
            self.core.presence.token_ended(line.connection, "the token is revoked", self.now)
            self.settle()

    @rule(seconds=st.sampled_from([0.5, 3.0, ACK_WAIT_S, 12.0, LEASE_S]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.ring()

    def ring(self) -> None:
        if self.core.next_tick_at <= self.now:
            self.core.tick(self.now)
            assert self.core.next_tick_at > self.now
            self.settle()

    @rule(steps=st.integers(0, 60), reads_at_once=st.booleans())
    def the_process_will_die(self, steps: int, reads_at_once: bool) -> None:
        self.fuse, self.reads_at_once = steps, reads_at_once

    # What must hold

    @precondition(lambda self: hasattr(self, "core"))
    @invariant()
    def no_task_is_in_three_hands_and_both_sides_know_who_has_it(self) -> None:
        in_hand = Counter((task.round, task.user) for line in self.lines.values() for task in line.hands.values())
        assert all(times <= MOST_HOLDERS for times in in_hand.values())
        for key in {lease.key for lease in self.table}:
            holders = self.table.holders(key)
            assert len({lease.record.client for lease in holders}) == len(holders) <= MOST_HOLDERS
        for line in self.lines.values():
            if self.core.members.get(line.name) is line.connection:
                leases = {lease.id: lease.committing for lease in self.table.of(line.name)}
                assert set(line.hands) <= set(leases)
                assert {name for name, committing in leases.items() if not committing} <= set(line.hands)

    @precondition(lambda self: hasattr(self, "core"))
    @invariant()
    def every_lease_is_kept_and_is_a_clients_that_is_there_or_ends(self) -> None:
        assert {lease.id for lease in self.table} == set(self.disk.kept)
        for lease in self.table:
            member = self.core.members.get(lease.record.client)
            assert member or lease.committing or lease.expires_at is not None
            if member and member.grant and not lease.committing:
                assert member.grant.name == lease.record.token
            if lease.expires_at is not None and not lease.committing:
                assert self.core.next_tick_at <= lease.expires_at
            if not lease.committing and not lease.lapsed:
                assert self.core.next_tick_at <= lease.lapses_at
            if self.core.is_caught_up and self.read == len(self.ledger.events):
                assert lease.committing or not self.ledger.is_over(lease.record.task)

    @precondition(lambda self: hasattr(self, "core"))
    @invariant()
    def nothing_waits_for_nothing(self) -> None:
        deciding, waited_for, in_spool, commits_running = set(), set(), set(), 0
        for effect in self.pending:
            match effect:
                case effects.CheckUpdate(commit) | effects.StoreUpdate(commit) | effects.PublishUpdate(commit, _, _):
                    commits_running += 1
                    deciding.add(commit.upload.lease.id)
                case effects.PublishRejection(_, lease, None, _):
                    deciding.add(lease.id)
                case effects.PublishRejection(_, _, asker, _):
                    waited_for.add(asker)
                case effects.TellProgress(connection, _) | effects.AwaitSequence(connection, _, _):
                    waited_for.add(connection)
                case effects.OpenUpload(upload) | effects.WriteChunk(upload, _, _):
                    waited_for.add(upload.connection)
                    in_spool.add(upload.lease.id)
        committing = {lease.id for lease in self.table if lease.committing}
        assert committing == deciding or (deciding < committing and commits_running == commits.PARALLEL)
        for connection in self.lines:
            queued = any(upload.lease.id in in_spool for upload in connection.uploads.values())
            assert not connection.busy or connection in waited_for or queued
        uploads = [one for line in self.lines.values() for one in line.connection.uploads.values() if not one.void]
        assert self.core.statistics().spooled_bytes == sum(one.progress.size for one in uploads)
        if not in_spool:
            assert {one for one in self.disk.open if one.lease.id not in committing} == set(uploads)

    @precondition(lambda self: hasattr(self, "core"))
    @invariant()
    def a_token_counts_its_clients(self) -> None:
        for grant in self.grants:
            assert grant.clients == sum(connection.grant is grant for _, connection in self.core.members)

    def teardown(self) -> None:
        """Whatever happened, all tasks are free again once nobody is there, and whoever comes then gets them."""
        if not hasattr(self, "core"):
            return
        self.fuse = None
        for connection in list(self.lines):
            del self.lines[connection]
            self.core.presence.left(connection, self.now)
        self.settle()
        self.finish()
        alone_since = self.now
        while self.table:
            self.now = self.core.next_tick_at
            assert self.now <= alone_since + LEASE_S, "a lease is held for ever"
            self.ring()
            self.finish()
        self.now += ACK_WAIT_S
        open_tasks = {key for key, task in self.tasks().items() if not self.ledger.is_over(task)}
        self.connect("c77", Grant("of somebody else", "train"), resumes=False)
        (line,) = self.lines.values()
        for _ in range(USERS * 2):
            self.send(line, Ready())
        for _ in range(USERS * 2 + 2):
            self.finish(fetch=True)
        assert {(task.round, task.user) for task in line.hands.values()} == open_tasks
        over = [one for one in self.broker.tasks.values() if self.ledger.is_over(self.task_of(one.stored.event.data))]
        assert all(one.acked for one in over)

    def finish(self, *, fetch: bool = False) -> None:
        """Everything that was begun is done; the stream is read to its end."""
        while self.read < len(self.ledger.events) or not self.core.is_caught_up:
            self.read_on()
        fetches, steps = int(fetch), 0
        while any(not isinstance(one, effects.Fetch) for one in self.pending) or (fetches and self.pending):
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


def test_no_task_is_lost_stuck_or_in_two_hands_whatever_is_said_and_whenever_the_gateway_dies(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(commits, "PARALLEL", 1)
    run_state_machine_as_test(
        ConversationMachine, settings=settings(max_examples=300, stateful_step_count=80, deadline=None)
    )
