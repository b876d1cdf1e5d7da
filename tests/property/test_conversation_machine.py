"""The gateway's conversation under any order of words, answers and crashes: no task is lost, stuck, or held by two."""

from __future__ import annotations

import hashlib
from collections import Counter

import hypothesis.strategies as st
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
from agents.core.exchange.leases import MOST_HOLDERS
from agents.core.exchange.messages import (
    Leave,
    ProgressMessage,
    Ready,
    TaskFailed,
    UploadBegin,
    UploadCommit,
    encode_chunk,
)
from agents.core.exchange.pool import ACK_WAIT_S
from agents.core.exchange.refusals import ENOUGH
from agents.words.events import RoundClosed, RunFinished
from tests.builders import RUN, submitted
from tests.property.exchange_simulation import CLIENTS, FINE, LEASE_S, TOKENS, USERS, WRONG, Line, Simulation, update_of

PATIENCE = 200
"""Times of two seconds: some of the tasks' own time, a quarter of a minute, which doubles when it passes."""


class ConversationMachine(Simulation, RuleBasedStateMachine):
    """Clients, a broker, a stream and a disk around a gateway that may die before and after whatever it does."""

    @initialize(nobody_can=st.booleans(), idle=st.integers(0, 2), settled=st.booleans())
    def start(self, nobody_can: bool, idle: int, settled: bool) -> None:
        """What the last clients will be like: one that works, or two that refuse all while others lie in wait."""
        self.nobody_can, self.idle, self.settled = nobody_can, idle, settled
        self.create()
        self.connect("c0", self.grants[0], resumes=False)
        self.finish()

    @rule(client=st.integers(0, CLIENTS - 1), token=st.sampled_from([None, None, None, 0, 1]), resumes=st.booleans())
    def a_client_connects(self, client: int, token: int | None, resumes: bool) -> None:
        self.connect(f"c{client}", self.grants[client % TOKENS if token is None else token], resumes=resumes)

    @rule(data=st.data(), silent=st.booleans())
    def a_connection_is_lost(self, data: st.DataObject, silent: bool) -> None:
        if not self.lines:
            return
        # Rather while what the client said last is still being done.
        lines = [line for line in self.lines.values() if line.connection.busy] or list(self.lines.values())
        line = data.draw(st.sampled_from(lines))
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
                self.do(self.pending.pop(data.draw(st.sampled_from([0, -1]))), fails=data.draw(st.integers(0, 9)) == 9)

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

    @rule(data=st.data(), count=st.integers(1, 12), fails=st.sampled_from([False, False, False, True]))
    def something_is_done(self, data: st.DataObject, count: int, fails: bool) -> None:
        for _ in range(count):
            if self.pending:
                self.do(self.pending.pop(data.draw(st.integers(0, len(self.pending) - 1))), fails=fails)

    @rule(count=st.integers(1, 20))
    def the_stream_is_read(self, count: int) -> None:
        for _ in range(count):
            self.read_on()

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
            if not lease.committing and not lease.shareable:
                assert self.core.next_tick_at <= lease.backup_at
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
        if self.nobody_can:
            self.everybody_refuses()
        else:
            self.one_takes_all()

    def open_tasks(self) -> set[tuple[int, str]]:
        return {key for key, task in self.tasks().items() if not self.ledger.is_over(task)}

    def one_takes_all(self) -> None:
        open_tasks = self.open_tasks()
        self.connect("c77", Grant("of somebody else", "train"), resumes=False)
        (line,) = self.lines.values()
        for _ in range(USERS * 2):
            self.send(line, Ready())
        for _ in range(USERS * 2 + 2):
            self.finish(fetch=True)
        assert {(task.round, task.user) for task in line.hands.values()} == open_tasks
        over = [one for one in self.broker.tasks.values() if self.ledger.is_over(self.task_of(one.stored.event.data))]
        assert all(one.acked for one in over)

    def everybody_refuses(self) -> None:
        """All tasks are put aside at last, although others hold tasks and do nothing, or only wait for some."""
        idle = [f"c9{number}" for number in range(self.idle)]
        refusing = ["c77", "c78"]
        for name in idle + refusing:
            self.connect(name, Grant(f"of {name}", "train"), resumes=False)
        lines = {line.name: line for line in self.lines.values()}
        # Those that lie in wait come first, or when tasks have been refused a few times.
        waits = [] if self.settled else idle
        for round in range(PATIENCE):
            if not self.open_tasks():
                break
            if round == ENOUGH:
                waits = idle
            for name in waits:
                if not lines[name].hands and not self.core.pool.candidates.waits_for(name):
                    self.send(lines[name], Ready())
            for name in refusing:
                for lease in list(lines[name].hands):
                    del lines[name].hands[lease]
                    self.send(lines[name], TaskFailed(lease=lease, reason="no"))
                while self.core.pool.candidates.waits_for(name) < 2:
                    self.send(lines[name], Ready())
            self.now += 2.0
            self.ring()
            self.finish(fetch=True)
        assert not self.open_tasks(), "a refused task waits for clients that do nothing"


def test_no_task_is_lost_stuck_or_in_two_hands_whatever_is_said_and_whenever_the_gateway_dies(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(commits, "PARALLEL", 1)
    run_state_machine_as_test(ConversationMachine, settings=settings(max_examples=300, stateful_step_count=80))
