"""Single turns of the gateway's conversation: what a client, a task and the spool are left with when something ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import pytest

from agents.core.exchange import effects
from agents.core.exchange.access import Grant
from agents.core.exchange.candidates import IDLE_S
from agents.core.exchange.connections import Connection
from agents.core.exchange.conversation import Conversation
from agents.core.exchange.leases import RETURN_S, LeaseRecord
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
    encode_chunk,
)
from agents.core.exchange.runs import MOST_REJECTIONS
from agents.core.exchange.task_times import BACKUP_FACTOR, FIRST_BACKUP_S
from agents.words.events import Payload, RoundClosed, RunFinished, TaskAssigned, UpdateMetrics
from bus.words.envelope import Stored
from bus.words.values import Frozen
from tests.builders import ANY_REF, RUN, Stream, assigned, config, planned, run_started

NOW, LATER = 100.0, 110.0
DEADLINE_S = 60.0
LAPSED = NOW + DEADLINE_S / 4
SHARED = NOW + FIRST_BACKUP_S
SIZE = 16
METRICS = UpdateMetrics(predictions=(0, 0), examples=2, mismatched_images=2, trained_images=14)
LIMITS = Limits(lease_s=30.0, max_spool_bytes=2 * SIZE)
T = TypeVar("T")


@dataclass(frozen=True)
class Delivered:
    stored: Stored
    attempt: int = 1


class World:
    """A conversation with one planned round, and what it wanted done since somebody looked."""

    def __init__(self, *kept: LeaseRecord, reads: bool = True, limits: Limits = LIMITS) -> None:
        self.stream = Stream()
        self.core = Conversation(limits, kept, NOW)
        for data in (run_started(config()), planned(3, 3, deadline_s=DEADLINE_S)):
            self.happens(data, reads=reads)
        self.tasks = [self.happens(assigned(f"u{number}"), reads=reads) for number in range(3)]
        if reads:
            self.core.caught_up()

    def happens(self, data: Payload, *, reads: bool = True) -> Stored:
        stored = self.stream.add(data)
        if reads:
            self.core.took_place(stored)
        return stored

    def wanted(self) -> list[effects.Effect]:
        found = []
        while (effect := self.core.effects.next()) is not None:
            found.append(effect)
        return found

    def one(self, kind: type[T]) -> T:
        """The only effect of this kind since somebody looked."""
        (found,) = [effect for effect in self.wanted() if isinstance(effect, kind)]
        return found

    def said(self) -> list[Frozen]:
        return [effect.message for effect in self.wanted() if isinstance(effect, effects.Say)]

    def joins(self, name: str = "one", *resume: str) -> Connection:
        connection = self.core.presence.connected()
        hello = Hello(protocol=1, client=name, engine="test", resume=resume)
        self.core.received(connection, hello.model_dump_json(), NOW)
        self.core.presence.admitted(connection, hello, Grant("token", "train"), NOW)
        return connection

    def hears(self, connection: Connection, message: Frozen | bytes, now: float = NOW) -> None:
        frame = message if isinstance(message, bytes) else message.model_dump_json()
        self.core.received(connection, frame, now)

    def holds(self, connection: Connection, task: int = 0) -> str:
        """The client gets this task; the lease's name."""
        self.hears(connection, Ready())
        self.core.pool.fetched([Delivered(self.tasks[task])], NOW)
        assignment = next(one for one in reversed(self.said()) if isinstance(one, Assignment))
        return assignment.lease

    def begins(self, connection: Connection, lease: str, number: int = 1, size: int = SIZE) -> None:
        self.hears(connection, UploadBegin(lease=lease, upload=number, size=size, sha256="0" * 64))

    def uploads(self, connection: Connection, lease: str, at: float = NOW) -> effects.Commit:
        """All bytes are there and committed."""
        self.begins(connection, lease)
        self.core.opened(self.one(effects.OpenUpload).upload, SIZE, at)
        self.hears(connection, UploadCommit(lease=lease, upload=1, metrics=METRICS), at)
        return self.one(effects.CheckUpdate).commit


@pytest.fixture
def world() -> World:
    return World()


@pytest.mark.parametrize("said", [True, False])
def test_a_rejection_ends_its_lease_although_its_client_is_gone_meanwhile(world: World, said: bool) -> None:
    client = world.joins()
    lease = world.holds(client)
    world.begins(client, lease, size=1)
    rejection = world.one(effects.PublishRejection)
    world.core.presence.left(client, NOW)
    world.core.commits.rejected(rejection, NOW, said=said)
    assert list(world.core.pool.leases) == []
    assert world.one(effects.GiveBack).delivery.stored == world.tasks[0]


@pytest.mark.parametrize("step", ["check", "store", "publish"])
def test_a_commit_that_fails_at_any_step_gives_its_task_back_and_tells_the_client(world: World, step: str) -> None:
    client = world.joins()
    commit = world.uploads(client, world.holds(client))
    if step != "check":
        world.core.commits.checked(commit, 1.0)
    if step == "publish":
        world.core.commits.stored(commit, ANY_REF)
    world.wanted()
    world.core.commits.failed(commit)
    done = world.wanted()
    assert [effect.delay_s for effect in done if isinstance(effect, effects.GiveBack)] == [1.0]
    said = [effect.message for effect in done if isinstance(effect, effects.Say)]
    assert [one.code for one in said if isinstance(one, UploadRejected)] == ["gateway"]
    assert list(world.core.pool.leases) == []


def test_the_answer_to_a_commit_goes_to_the_connection_that_the_client_has_by_then(world: World) -> None:
    first = world.joins()
    lease = world.holds(first)
    commit = world.uploads(first, lease)
    world.core.presence.left(first, NOW)
    second = world.joins("one", lease)
    world.begins(second, lease, 7)
    world.core.commits.checked(commit, 1.0)
    world.core.commits.stored(commit, ANY_REF)
    world.wanted()
    world.core.commits.submitted(commit, False)
    done = world.wanted()
    assert effects.Say(second, UploadAccepted(lease=lease, upload=7)) in done
    assert [effect.delivery.stored for effect in done if isinstance(effect, effects.Ack)] == [world.tasks[0]]


def test_a_client_that_said_goodbye_gets_no_task_that_it_had_asked_for(world: World) -> None:
    client = world.joins()
    world.hears(client, Ready())
    world.hears(client, Leave())
    world.wanted()
    world.core.pool.fetched([Delivered(world.tasks[0])], NOW)
    assert world.one(effects.GiveBack) == effects.GiveBack(Delivered(world.tasks[0]), 0.0)


def test_nothing_counts_that_comes_after_the_farewell(world: World) -> None:
    client = world.joins()
    world.hears(client, Leave())
    world.wanted()
    world.hears(client, Ready())
    assert world.wanted() == []


def test_a_task_that_is_revoked_in_its_upload_frees_the_spool_and_the_chunks_are_answered(world: World) -> None:
    client = world.joins()
    lease = world.holds(client)
    world.begins(client, lease)
    upload = world.one(effects.OpenUpload).upload
    world.core.opened(upload, 0, NOW)
    assert world.core.statistics().spooled_bytes == SIZE
    world.happens(RoundClosed(run=RUN, round=1, reason="all", accepted=0, missing=0, rejected=0, through=1))
    done = world.wanted()
    assert effects.CloseUpload(upload) in done
    assert any(isinstance(one, effects.Say) and isinstance(one.message, TaskRevoked) for one in done)
    assert world.core.statistics().spooled_bytes == 0
    world.hears(client, encode_chunk(1, 0, b"12345678"))
    world.hears(client, encode_chunk(1, 8, b"12345678"))
    assert world.said() == [UploadOffset(upload=1, offset=8), UploadOffset(upload=1, offset=16)]
    world.hears(client, UploadCommit(lease=lease, upload=1, metrics=METRICS))
    assert client.busy
    world.core.commits.rejected(world.one(effects.PublishRejection), NOW, said=True)
    assert [one.code for one in world.said() if isinstance(one, UploadRejected)] == ["stale"]
    assert not client.busy


def test_a_client_that_comes_back_waits_until_its_last_chunk_is_written(world: World) -> None:
    first = world.joins()
    lease = world.holds(first)
    world.begins(first, lease)
    older = world.one(effects.OpenUpload).upload
    world.core.opened(older, 0, NOW)
    world.hears(first, encode_chunk(1, 0, b"1234"))
    second = world.joins("one", lease)
    world.wanted()
    world.begins(second, lease, 2)
    assert world.wanted() == []
    assert second.busy
    world.core.written(older, 4, NOW)
    assert [type(effect) for effect in world.wanted()] == [effects.CloseUpload, effects.OpenUpload]


def test_an_upload_for_a_task_that_was_not_read_yet_waits_for_the_stream() -> None:
    before = World(reads=False)
    task = before.tasks[0]
    assert isinstance(task.event.data, TaskAssigned)
    kept = LeaseRecord(task=task.event.data, client="one", token="token", sequence=task.sequence, attempt=1)
    world = World(kept, reads=False)
    (lease,) = [one.id for one in world.core.pool.leases]
    client = world.joins("one", lease)
    world.wanted()
    world.begins(client, lease)
    waits = world.one(effects.AwaitSequence)
    assert (waits.sequence, client.busy) == (task.sequence, True)
    for stored in world.stream.events:
        world.core.took_place(stored)
    world.core.reached(waits, NOW, in_time=True)
    assert world.one(effects.OpenUpload).upload.lease.id == lease


def test_the_end_of_a_run_leaves_a_commit_to_its_own_end(world: World) -> None:
    client = world.joins()
    commit = world.uploads(client, world.holds(client))
    world.happens(RunFinished(run=RUN, status="completed", rounds=1))
    assert [one.committing for one in world.core.pool.leases] == [True]
    world.core.commits.checked(commit, 1.0)
    world.core.commits.stored(commit, ANY_REF)
    event = world.one(effects.PublishUpdate).event
    assert (event.user, event.client, event.update) == ("u0", "one", ANY_REF)
    world.core.commits.submitted(commit, True)
    world.core.commits.rejected(world.one(effects.PublishRejection), NOW, said=True)
    assert list(world.core.pool.leases) == []


def test_a_lost_clients_lease_is_due_when_the_clock_says_so(world: World) -> None:
    client = world.joins()
    world.holds(client)
    world.core.tick(NOW)
    world.core.presence.left(client, LATER)
    while world.core.pool.leases and world.core.next_tick_at <= LATER + LIMITS.lease_s:
        world.core.tick(world.core.next_tick_at)
    assert list(world.core.pool.leases) == []
    assert any(isinstance(effect, effects.GiveBack) for effect in world.wanted())


def test_a_lease_lapses_when_its_tasks_time_is_over_and_not_before(world: World) -> None:
    slow, other = world.joins("slow"), world.joins("other")
    world.holds(slow)
    world.hears(other, Ready(), LAPSED - IDLE_S / 2)
    world.core.pool.fetched([], NOW)
    world.wanted()
    world.core.tick(LAPSED - 0.001)
    assert not any(isinstance(one, effects.GiveBack) for one in world.wanted())
    world.core.tick(LAPSED)
    assert world.one(effects.GiveBack) == effects.GiveBack(Delivered(world.tasks[0]), 0.0)
    world.core.pool.fetched([Delivered(world.tasks[0], 2)], LAPSED)
    (second,) = [one for one in world.said() if isinstance(one, Assignment)]
    assert [lease.id for lease in world.core.pool.leases] == ["run.1.u0.1", second.lease]


def offered(world: World) -> list[Stored]:
    """Tasks that go back to the broker for somebody else."""
    return [one.delivery.stored for one in world.wanted() if isinstance(one, effects.GiveBack)]


def test_an_idle_client_backs_up_a_task_that_takes_a_while_and_not_before(world: World) -> None:
    slow, idle = world.joins("slow"), world.joins("idle")
    world.holds(slow)
    world.hears(idle, Ready())
    world.core.pool.fetched([], NOW)
    world.core.tick(SHARED - 0.001)
    assert offered(world) == []
    world.core.tick(SHARED)
    assert offered(world) == [world.tasks[0]]
    world.core.pool.fetched([Delivered(world.tasks[0], 2)], SHARED)
    assert [one.record.client for one in world.core.pool.leases] == ["slow", "idle"]
    # The slow one has failed in nothing, and may still be first.
    assert world.core.pool.standing.faults("slow", "token") == 0


def test_where_tasks_turn_out_to_take_long_those_under_way_have_longer_before_they_are_backed_up(world: World) -> None:
    """So that a gateway that many clients keep waiting does not make its work more by that."""
    slow, other = world.joins("slow"), world.joins("other")
    world.holds(slow)
    took = FIRST_BACKUP_S - 0.5
    commit = world.uploads(other, world.holds(other, 1), NOW + took)
    world.core.commits.checked(commit, 1.0)
    world.core.commits.stored(commit, ANY_REF)
    world.core.commits.submitted(commit, False)
    world.hears(other, Ready(), NOW + took)
    world.core.pool.fetched([], NOW + took)
    world.core.tick(SHARED)
    world.core.tick(NOW + BACKUP_FACTOR * took - 0.001)
    assert offered(world) == []
    world.core.tick(NOW + BACKUP_FACTOR * took)
    assert offered(world) == [world.tasks[0]]


def test_who_has_waited_for_a_moment_only_backs_nobody_up(world: World) -> None:
    slow, new = world.joins("slow"), world.joins("new")
    world.holds(slow)
    world.hears(new, Ready(), SHARED)
    world.core.pool.fetched([], SHARED)
    world.core.tick(SHARED + IDLE_S - 0.001)
    assert offered(world) == []
    world.core.tick(SHARED + IDLE_S)
    assert offered(world) == [world.tasks[0]]


def test_a_third_gets_a_task_only_when_it_has_delivered_and_a_holder_has_not(world: World) -> None:
    works = world.joins("works")
    commit = world.uploads(works, world.holds(works, 2))
    world.core.commits.checked(commit, 1.0)
    world.core.commits.stored(commit, ANY_REF)
    world.core.commits.submitted(commit, False)
    world.holds(world.joins("pings"))
    world.hears(world.joins("pings-too"), Ready())
    world.core.tick(SHARED)
    world.core.pool.fetched([Delivered(world.tasks[0], 2)], SHARED)
    assert len(world.core.pool.leases.holders((RUN, 1, "u0"))) == 2
    world.wanted()
    world.hears(world.joins("new"), Ready())
    world.core.tick(NOW + 2 * FIRST_BACKUP_S)
    assert offered(world) == []
    world.hears(works, Ready())
    world.core.tick(NOW + 2 * FIRST_BACKUP_S)
    assert offered(world) == [world.tasks[0]]
    world.core.pool.fetched([Delivered(world.tasks[0], 3)], NOW + 2 * FIRST_BACKUP_S)
    holders = world.core.pool.leases.holders((RUN, 1, "u0"))
    assert [one.record.client for one in holders] == ["pings-too", "works"]


def test_who_takes_long_itself_backs_nobody_up(world: World) -> None:
    one, two = world.joins("one"), world.joins("two")
    world.holds(one, 0)
    world.holds(two, 1)
    for client in (one, two):
        world.hears(client, Ready())
    world.core.pool.fetched([], NOW)
    world.core.tick(SHARED)
    assert offered(world) == []


def test_who_refused_a_task_does_not_back_it_up(world: World) -> None:
    refuses, slow = world.joins("refuses"), world.joins("slow")
    world.hears(refuses, TaskFailed(lease=world.holds(refuses), reason="no"))
    world.holds(slow)
    world.hears(refuses, Ready())
    world.core.pool.fetched([], NOW)
    world.core.tick(SHARED)
    assert offered(world) == []


def test_a_task_is_offered_once_more_only_when_somebody_else_waits_for_it(world: World) -> None:
    slow = world.joins("slow")
    world.holds(slow)
    world.hears(slow, Ready())
    world.wanted()
    world.core.tick(LAPSED)
    assert not any(isinstance(one, effects.GiveBack) for one in world.wanted())


def test_who_lets_a_task_lie_gets_no_other(world: World) -> None:
    slow = world.joins("slow")
    world.holds(slow)
    world.core.tick(LAPSED)
    world.hears(slow, Ready())
    world.core.pool.fetched([Delivered(world.tasks[1])], LAPSED)
    assert world.one(effects.GiveBack) == effects.GiveBack(Delivered(world.tasks[1]), 0.0)


def test_a_tokens_clients_hold_a_bounded_number_of_tasks_whatever_their_names() -> None:
    world = World(limits=LIMITS.model_copy(update={"max_token_tasks": 2}))
    for number in range(3):
        world.hears(world.joins(f"name{number}"), Ready())
    world.wanted()
    world.core.pool.fetched([Delivered(task) for task in world.tasks], NOW)
    done = world.wanted()
    assert sum(isinstance(one, effects.Say) and isinstance(one.message, Assignment) for one in done) == 2
    assert [one.delivery.stored for one in done if isinstance(one, effects.GiveBack)] == [world.tasks[2]]
    assert not any(isinstance(one, effects.Fetch) for one in done)


def kept_of(world: World) -> LeaseRecord:
    task = world.tasks[0]
    assert isinstance(task.event.data, TaskAssigned)
    return LeaseRecord(task=task.event.data, client="one", token="token", sequence=task.sequence, attempt=1)


@pytest.mark.parametrize("returns", [True, False])
def test_after_a_restart_a_task_waits_a_few_seconds_for_its_client_alone(returns: bool) -> None:
    world = World(kept_of(World()))
    if returns:
        world.joins("one", "run.1.u0.1")
    world.hears(world.joins("other"), Ready(), NOW + RETURN_S - IDLE_S / 2)
    world.core.pool.fetched([Delivered(world.tasks[0], 2)], NOW)
    world.wanted()
    world.core.tick(NOW + RETURN_S)
    assert any(isinstance(one, effects.GiveBack) for one in world.wanted()) != returns


def test_a_rejection_is_written_once_however_often_a_client_asks_for_it(world: World) -> None:
    one = world.joins()
    lease = world.holds(one)
    world.happens(RoundClosed(run=RUN, round=1, reason="deadline", accepted=0, missing=3, rejected=0, through=1))
    written = []
    for number in range(5):
        world.begins(one, lease, number)
        effect = world.one(effects.PublishRejection)
        written.append(effect.written)
        world.core.commits.rejected(effect, NOW, said=True)
    assert written == [True, False, False, False, False]


@pytest.mark.parametrize("said", [True, False])
def test_the_stream_gets_a_few_rejections_of_a_task_and_not_one_more(world: World, said: bool) -> None:
    written = []
    for attempt in range(MOST_REJECTIONS + 2):
        one = world.joins(f"name{attempt}")
        world.hears(one, Ready())
        world.core.pool.fetched([Delivered(world.tasks[0], attempt + 1)], NOW)
        lease = next(
            effect.message.lease
            for effect in world.wanted()
            if isinstance(effect, effects.Say) and isinstance(effect.message, Assignment)
        )
        world.begins(one, lease, size=1)
        effect = world.one(effects.PublishRejection)
        written.append(effect.written)
        world.core.commits.rejected(effect, NOW, said=said)
    # What could not be said counts for nothing.
    assert sum(written) == (MOST_REJECTIONS if said else len(written))


def test_progress_is_heard_once_a_tenth_of_a_second_and_in_each_phase_once_more(world: World) -> None:
    one = world.joins()
    lease = world.holds(one)
    heard = []
    for phase in ("predict", "predict", "train", "predict", "train", "upload", "upload", "predict"):
        world.hears(one, ProgressMessage(lease=lease, phase=phase, images_seen=1))
        if any(isinstance(effect, effects.TellProgress) for effect in world.wanted()):
            heard.append(phase)
            world.core.told(one)
    assert heard == ["predict", "train", "upload"]
