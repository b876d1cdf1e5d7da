import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import nats.errors
import pytest
import pytest_asyncio
from nats.aio.client import Client
from nats.js.errors import ServerError
from pydantic import SecretStr

from agents.runtime.tasks import background
from agents.words.events import ROLES, Heartbeat, ImagesLabelled, Progress, RoundStarted
from bus.broker.permissions import new_passwords
from bus.broker.server import EmbeddedServer, embedded_server
from bus.broker.settings import BusSettings, inbox_prefix
from bus.broker.topology import OBJECT_STREAM, STREAMS
from bus.client import Bus, CaughtUp
from bus.errors import BrokerUnavailableError, FedbusError, PermissionDeniedError
from bus.objects.bucket import CHUNK, meta_subject
from bus.stream.dead_letters import DeadLetter
from bus.stream.event_reader import EventReader
from bus.words.envelope import Stored, new_event
from bus.words.payload import COLLECTOR, OPERATOR, payloads, roles
from bus.words.subjects import LetterSubject, event_subject, events_of, live_subject
from bus.work.retries import retries_of, stored_at
from bus.work.worker import work
from tests.broker.bus.conftest import failed, nats_client
from tests.builders import subject_example
from tests.conftest import wait_for

Refusal = Callable[[Callable[[Client], Awaitable[object]]], Awaitable[str]]
STREAM_NAMES = [str(stream.name) for stream in STREAMS]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def guarded(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EmbeddedServer]:
    """A broker with one user for each role."""
    async with embedded_server(tmp_path_factory.mktemp("guarded"), passwords=new_passwords()) as server:
        async with Bus.connect(server.settings, name="cli", wait_s=10):
            pass
        yield server


@pytest.mark.parametrize("role", ROLES)
async def test_a_role_may_say_its_own_events_and_is_refused_every_other(guarded: EmbeddedServer, role: str) -> None:
    async with Bus.connect(guarded.settings_for(role), name=role, wait_s=10) as bus:
        for payload in payloads():
            subject = event_subject(subject_example(payload))
            sending = await bus.pipeline.send(subject, b"{}")
            async with asyncio.timeout(10):
                if role in payload.SAID_BY:
                    assert (await sending).sequence > 0
                else:
                    with pytest.raises(PermissionDeniedError, match=subject):
                        await sending


async def test_a_refused_event_is_a_clear_error_through_the_bus(guarded: EmbeddedServer, unique_run: str) -> None:
    async with Bus.connect(guarded.settings_for("labeller"), name="labeller", wait_s=10) as bus:
        async with asyncio.timeout(10):
            with pytest.raises(PermissionDeniedError) as one:
                await bus.publish(failed(unique_run))
            with pytest.raises(PermissionDeniedError):
                await bus.publish_many([failed(unique_run, 1), failed(unique_run, 2)])
    assert one.value.code == "permission_denied"
    assert one.value.hint


@pytest.mark.parametrize("role", ROLES)
async def test_every_role_can_follow_pull_and_use_objects(guarded: EmbeddedServer, role: str, unique_run: str) -> None:
    async with asyncio.timeout(20), Bus.connect(guarded.settings_for(role), name=role, wait_s=10) as bus:
        ref = await bus.objects.put(f"object of {role}".encode() * 100_000)
        assert len(await bus.objects.get(ref)) == ref.size
        async with bus.follow(f"ev.{unique_run}.>", live=False) as items:
            assert [type(item) async for item in items] == [CaughtUp]
        async with bus.pull(role, f"ev.{unique_run}.>") as consumer:
            assert await consumer.fetch(1, timeout_s=0.1) == []
        async with bus.hear(Heartbeat) as beats:
            beat = Heartbeat.model_validate({"role": role, "id": "1", "time": "2026-01-01T00:00:00Z", "uptime_s": 1})
            await bus.say(beat)
            assert await anext(beats) == beat


async def test_only_the_gateway_may_report_progress(guarded: EmbeddedServer, unique_run: str) -> None:
    said = Progress(run=unique_run, round=1, user="u", client="c", phase="train", images_seen=1)
    async with asyncio.timeout(10), contextlib.AsyncExitStack() as stack:
        gateway, labeller = [
            await stack.enter_async_context(Bus.connect(guarded.settings_for(role), name=role, wait_s=10))
            for role in ("gateway", "labeller")
        ]
        items = await stack.enter_async_context(gateway.hear(Progress, run=unique_run))
        await labeller.say(said.model_copy(update={"images_seen": 99}))
        await labeller.connection.nc.flush()
        await gateway.say(said)
        assert await anext(items) == said


async def test_a_role_gives_up_takes_back_and_settles_its_own_events_only(
    guarded: EmbeddedServer, unique_run: str
) -> None:
    broken = True

    async def handler(stored: Stored) -> None:
        if broken:
            raise FedbusError("not today")

    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(asyncio.timeout(20))
        operator = await stack.enter_async_context(Bus.connect(guarded.settings, name="cli", wait_s=10))
        settings = guarded.settings_for("evaluator")
        agent = await stack.enter_async_context(Bus.connect(settings, name="evaluator", wait_s=10))
        consumer = await stack.enter_async_context(agent.pull("evaluator", events_of(unique_run), max_deliver=1))
        await stack.enter_async_context(background(work(consumer, handler, concurrency=1)))
        await operator.publish(RoundStarted(run=unique_run, round=1))
        await wait_for(lambda: consumer.buried == 1)
        (letter,) = [one for one in await operator.dead_letters() if one.consumer == "evaluator"]
        broken = False
        assert (await operator.retry(letter)).asked == ("evaluator",)
        await wait_for(lambda: _settled(operator, letter))
        for kind, consumer_name in (("retry", "evaluator"), ("given_up", "labeller"), ("handled", "labeller")):
            subject = str(LetterSubject(kind, consumer_name, 1))
            with pytest.raises(PermissionDeniedError, match=subject):
                await (await agent.pipeline.send(subject, b"{}"))


async def test_a_refusal_meets_its_event_however_its_name_is_written(guarded: EmbeddedServer, unique_run: str) -> None:
    async with asyncio.timeout(20), Bus.connect(guarded.settings_for("labeller"), name="labeller", wait_s=10) as bus:
        with pytest.raises(PermissionDeniedError, match=f"{unique_run}-Loud"):
            await bus.publish(failed(f"{unique_run}-Loud"))


async def test_a_refusal_meets_the_request_that_was_refused_and_no_other(guarded: EmbeddedServer) -> None:
    forbidden, allowed = "$JS.API.STREAM.DELETE.EVENTS", "$JS.API.STREAM.INFO.EVENTS"
    async with asyncio.timeout(30), Bus.connect(guarded.settings_for("labeller"), name="labeller", wait_s=10) as bus:
        tries = 0
        refused = asyncio.Event()
        bus.connection.on_denied = lambda _: refused.set()

        async def delete() -> None:
            await bus.connection.nc.request(forbidden, b"", timeout=1)

        async def look() -> bytes:
            """Gets no answer the first time, as from a broker that restarts."""
            nonlocal tries
            tries += 1
            answer = await bus.connection.nc.request(allowed, b"", timeout=5)
            if tries == 1:
                await refused.wait()
                raise nats.errors.TimeoutError
            return answer.data

        looking = asyncio.create_task(bus.connection.persist(look))
        await wait_for(lambda: tries == 1)
        with pytest.raises(PermissionDeniedError, match=r"STREAM\.DELETE"):
            await bus.connection.persist(delete)
        assert b"EVENTS" in await looking


async def _settled(bus: Bus, letter: DeadLetter) -> bool:
    return letter.sequence not in {one.sequence for one in await bus.dead_letters()}


@contextlib.asynccontextmanager
async def logged_in(server: EmbeddedServer, role: str) -> AsyncIterator[Refusal]:
    """A plain client of this role; call what is yielded with something forbidden to get what the broker says of it."""
    settings, refused = server.settings_for(role), asyncio.Queue[str]()
    assert settings.password is not None

    async def note(error: Exception) -> None:
        refused.put_nowait(str(error).lower())

    client = nats_client()
    password = settings.password.get_secret_value()
    await client.connect(settings.url, user=role, password=password, error_cb=note)

    async def refusal(doing: Callable[[Client], Awaitable[object]]) -> str:
        await doing(client)
        return await asyncio.wait_for(refused.get(), 10)

    yield refusal
    await client.close()


@pytest.mark.parametrize("role", roles())
async def test_no_agent_can_change_the_streams_or_delete_from_them(guarded: EmbeddedServer, role: str) -> None:
    forbidden = [f"$JS.API.STREAM.DELETE.{stream}" for stream in STREAM_NAMES]
    forbidden += [f"$JS.API.STREAM.MSG.DELETE.{stream}" for stream in STREAM_NAMES]
    purges = [f"$JS.API.STREAM.PURGE.{stream}" for stream in STREAM_NAMES]
    forbidden += [one for one in purges if not (role == COLLECTOR and one.endswith(OBJECT_STREAM))]
    if role != OPERATOR:
        forbidden += [f"$JS.API.STREAM.UPDATE.{stream}" for stream in STREAM_NAMES]
    if role != COLLECTOR:
        forbidden.append("deleted.upload")
    async with logged_in(guarded, role) as refusal:
        for subject in forbidden:
            assert f'publish to "{subject.lower()}"' in await refusal(lambda nc, to=subject: nc.publish(to, b"{}"))


@pytest.mark.parametrize("role", roles())
async def test_a_role_can_neither_change_nor_delete_nor_empty_the_consumers_of_others(
    guarded: EmbeddedServer, role: str
) -> None:
    forbidden = []
    for other in set(roles()) - {role}:
        for stream in ("EVENTS", "DLQ"):
            forbidden += [
                f"$JS.API.CONSUMER.{verb}.{stream}.{other}"
                for verb in ("CREATE", "DURABLE.CREATE", "DELETE", "MSG.NEXT", "UNPIN", "PAUSE")
            ]
            forbidden += [f"$JS.API.CONSUMER.CREATE.{stream}.{other}.ev.x", f"$JS.ACK.{stream}.{other}.1.1.1.1.0"]
        forbidden.append(f"$O.objects.C.{other}.upload")
    forbidden += ["$JS.API.CONSUMER.DELETE.EVENTS.follow-x", "$JS.API.CONSUMER.CREATE.EVENTS", "$O.objects.C.upload"]
    async with logged_in(guarded, role) as refusal:
        for subject in forbidden:
            assert f'publish to "{subject.lower()}"' in await refusal(lambda nc, to=subject: nc.publish(to, b"{}"))


@pytest.mark.parametrize("role", roles())
async def test_a_role_cannot_hear_the_answers_to_another(guarded: EmbeddedServer, role: str) -> None:
    others = [inbox_prefix(other) for other in roles() if other != role]
    forbidden = [">", "*.>", *(f"{prefix}.>" for prefix in others)]
    async with logged_in(guarded, role) as refusal:
        for subject in forbidden:
            assert f'subscription to "{subject.lower()}"' in await refusal(lambda nc, to=subject: nc.subscribe(to))


async def three_roles(stack: contextlib.AsyncExitStack, server: EmbeddedServer) -> list[Bus]:
    """Who puts an object, who says something untrue of it, and who reads it."""
    return [
        await stack.enter_async_context(Bus.connect(server.settings_for(role), name=role, wait_s=10))
        for role in ("aggregator", "labeller", "gateway")
    ]


async def test_what_another_role_says_of_an_object_hides_and_harms_nothing(guarded: EmbeddedServer) -> None:
    data = os.urandom(CHUNK + 5)
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(asyncio.timeout(30))
        owner, thief, reader = await three_roles(stack, guarded)
        ref = await owner.objects.put(data)
        (meta,) = await owner.objects.bucket.candidates(ref.name)
        js = thief.connection.js
        with pytest.raises(ServerError, match="rollup"):
            await js.publish(meta_subject(ref.name), b"{", headers={"Nats-Rollup": "sub"})
        lies: list[dict[str, object]] = [{"deleted": True}, {"size": 7}, {"nuid": "nowhere"}]
        for lie in lies:
            await js.publish(meta_subject(ref.name), json.dumps(meta.model_dump() | lie).encode())
            assert await reader.objects.get(ref) == data
        # Other bytes of the right size, in chunks of its own.
        first, chunks = await thief.objects.bucket.send("labeller.forged", _parts(os.urandom(CHUNK), b"other"))
        last = (await owner.objects.bucket.find(ref.name))[1]
        assert await thief.objects.bucket.write_meta(ref, "labeller.forged", first=first, chunks=chunks, replaces=last)
        assert await reader.objects.get(ref) == data
        await js.publish(meta_subject(ref.name), b"{")
        assert await reader.objects.get(ref) == data
        assert await owner.objects.put(data) == ref


LIES: dict[str, dict[str, object]] = {
    "a first chunk that is no number": {"headers": {"first-sequence": ["abc"]}},
    "a first chunk that is yet to come": {"headers": {"first-sequence": ["999999999999999999"]}},
    "a first chunk before the first": {"headers": {"first-sequence": ["-5"]}},
    "chunks of no bytes": {"options": {"max_chunk_size": 0}},
    "chunks of one byte": {"options": {"max_chunk_size": 1}},
    "less than no bytes": {"size": -1},
    "no bytes": {"size": 0},
    "seven bytes": {"size": 7},
    "many bytes": {"size": 10**12},
    "another's chunks": {"nuid": "nowhere"},
    "everybody's chunks": {"nuid": ">"},
    "a type that breaks a header": {"headers": {"media-type": ["text/html\r\nX: 1"]}},
    "a type that is too long": {"headers": {"media-type": ["t" * 500]}},
    "another name": {"name": "x"},
    "that it is gone": {"deleted": True},
}


@pytest.mark.parametrize("lie", LIES)
async def test_whatever_another_role_says_of_an_object_it_is_found_and_read(guarded: EmbeddedServer, lie: str) -> None:
    data = os.urandom(CHUNK + 5)
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(asyncio.timeout(9))
        owner, thief, reader = await three_roles(stack, guarded)
        ref = await owner.objects.put(data, media_type="text/plain")
        (meta,) = await owner.objects.bucket.candidates(ref.name)
        said = json.dumps(meta.model_dump() | LIES[lie]).encode()
        await thief.connection.js.publish(meta_subject(ref.name), said)
        found = await reader.objects.info(ref.name)
        assert found is not None
        assert (found.name, found.size, found.sha256) == (ref.name, ref.size, ref.sha256)
        assert await reader.objects.get(ref.sha256) == data
        assert await reader.objects.get(ref) == data
        parts = [part async for part in reader.objects.stream(ref, start=CHUNK - 3)]
        assert b"".join(parts) == data[CHUNK - 3 :]
        assert await owner.objects.put(data, media_type="text/plain") == ref


async def test_bytes_that_another_object_claims_as_its_own_are_not_deleted_with_it(guarded: EmbeddedServer) -> None:
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(asyncio.timeout(30))
        owner, thief, collector = [
            await stack.enter_async_context(Bus.connect(guarded.settings_for(role), name=role, wait_s=10))
            for role in ("aggregator", "labeller", COLLECTOR)
        ]
        needed, unneeded = os.urandom(100), os.urandom(100)
        ref, bait = await owner.objects.put(needed), await thief.objects.put(unneeded)
        (theirs,) = await thief.objects.bucket.candidates(ref.name)
        (own,) = await thief.objects.bucket.candidates(bait.name)
        said = json.dumps(own.model_dump() | {"nuid": theirs.nuid}).encode()
        await thief.connection.js.publish(meta_subject(bait.name), said)
        entry, _ = await collector.objects.bucket.find(bait.name)
        assert entry is not None
        assert await collector.objects.bucket.delete(entry, "a test")
        assert await owner.objects.info(bait.name) is None
        assert await owner.objects.get(ref) == needed


async def _parts(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def test_only_the_collector_deletes_objects(guarded: EmbeddedServer) -> None:
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(asyncio.timeout(30))
        operator, collector = [
            await stack.enter_async_context(Bus.connect(guarded.settings_for(role), name=role, wait_s=10))
            for role in (OPERATOR, COLLECTOR)
        ]
        ref = await operator.objects.put(b"to be collected")
        with pytest.raises(PermissionDeniedError):
            async with contextlib.aclosing(operator.expired_objects(0)) as expired:
                await anext(expired)
        assert await operator.objects.get(ref) == b"to be collected"
        async with contextlib.aclosing(collector.expired_objects(0)) as expired:
            assert ref in [one async for one in expired]
        assert await operator.objects.info(ref.name) is None


async def test_what_the_broker_copied_as_an_answer_is_no_event(guarded: EmbeddedServer, unique_run: str) -> None:
    """Whoever may ask the broker names the subject that it answers on, and the broker may write everywhere."""
    forged = event_subject(failed(unique_run))
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(asyncio.timeout(30))
        thief, reader = [
            await stack.enter_async_context(Bus.connect(guarded.settings_for(role), name=role, wait_s=10))
            for role in ("labeller", "evaluator")
        ]
        own = event_subject(subject_example(ImagesLabelled))
        body = new_event(failed(unique_run), source="thief").to_json()
        sequence = (await thief.connection.js.publish(own, body)).seq
        request = json.dumps({"seq": sequence}).encode()
        await thief.connection.nc.publish("$JS.API.DIRECT.GET.EVENTS", request, reply=forged)
        await wait_for(lambda: _is_stored(reader, forged))
        async with reader.follow(events_of(unique_run), live=False) as items:
            assert [type(item) async for item in items] == [CaughtUp]


async def test_no_reader_takes_what_the_broker_copied_for_what_stands_there(
    guarded: EmbeddedServer, unique_run: str
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(asyncio.timeout(60))
        thief, worker, operator = [
            await stack.enter_async_context(Bus.connect(guarded.settings_for(role), name=role, wait_s=10))
            for role in ("labeller", "evaluator", OPERATOR)
        ]
        own = event_subject(subject_example(ImagesLabelled))

        async def forge(body: bytes, subject: str) -> None:
            sequence = (await thief.connection.js.publish(own, body)).seq
            request = json.dumps({"seq": sequence}).encode()
            await thief.connection.nc.publish("$JS.API.DIRECT.GET.EVENTS", request, reply=subject)

        # Looking for an event, and saying it.
        told = failed(unique_run)
        await forge(new_event(told, source="thief").to_json(), event_subject(told))
        await wait_for(lambda: _is_stored(worker, event_subject(told)))
        assert await worker.find(event_subject(told)) is None
        # What a damaged consumer left out is asked for one by one.
        reader = EventReader(worker.connection, (events_of(unique_run),), after=0, live=False)
        await reader._recover((await _state(operator)) + 1)
        assert list(reader._recovered) == []
        # A place of the stream that is to be tried again.
        last = await worker.connection.last_message("EVENTS", event_subject(told))
        assert last is not None
        assert isinstance(await stored_at(worker.connection, last.seq or 0), str)
        # A note that a letter was handled, which would hide it.
        await worker.connection.js.publish("dlq.given_up.evaluator.1", b"{}")
        await forge(b"", "dlq.handled.evaluator.1")
        await wait_for(lambda: _is_stored(operator, "dlq.handled.evaluator.1", stream="DLQ"))
        assert 1 in [one.sequence for one in await operator.dead_letters() if one.consumer == "evaluator"]
        # A wish to have it tried again, which would keep out a true one, and the note, when it is handled.
        event = await operator.publish(RoundStarted(run=unique_run, round=2))
        assert await worker.give_up(event, "no", by="evaluator")
        (letter,) = [one for one in await operator.dead_letters() if one.sequence == event.sequence]
        for kind in ("retry", "handled"):
            forged = f"dlq.{kind}.evaluator.{event.sequence}"
            await forge(b"", forged)
            await wait_for(partial(_is_stored, operator, forged, stream="DLQ"))
        async with (
            worker.pull("evaluator", events_of(unique_run), max_deliver=2, ack_wait_s=5) as consumer,
            retries_of(consumer) as retries,
        ):
            assert (await operator.retry(letter)).asked == ("evaluator",)
            (delivery,) = await retries.fetch(1, timeout_s=10)
            assert delivery.stored.sequence == event.sequence
            await delivery.ack()
            assert event.sequence not in [one.sequence for one in await operator.dead_letters()]
        # What is said live.
        beat = Heartbeat(role="gateway", id="7", time=datetime.now(UTC), uptime_s=1.0)
        async with operator.hear(Heartbeat) as beats:
            await forge(beat.model_dump_json().encode(), live_subject(beat))
            await wait_for(lambda: beats.malformed == 1)


async def _state(bus: Bus) -> int:
    return (await bus.connection.js.stream_info("EVENTS")).state.last_seq


async def _is_stored(bus: Bus, subject: str, *, stream: str = "EVENTS") -> bool:
    return await bus.connection.last_message(stream, subject) is not None


async def test_one_role_cannot_log_in_with_the_password_of_another(guarded: EmbeddedServer) -> None:
    stolen = guarded.settings_for("labeller").model_copy(update={"user": OPERATOR})
    for settings in (stolen, BusSettings(url=guarded.url)):
        with pytest.raises(BrokerUnavailableError, match="refuses"):
            await Bus.connect(settings, name="thief", wait_s=10).__aenter__()


async def test_a_broker_has_the_passwords_of_its_latest_start(tmp_path: Path) -> None:
    first, second = new_passwords(), new_passwords()
    assert not set(first.values()) & set(second.values())
    for passwords in (first, second):
        async with (
            embedded_server(tmp_path, passwords=passwords) as server,
            Bus.connect(server.settings, name="cli", wait_s=10),
        ):
            assert (tmp_path / "nats-server.conf").stat().st_mode & 0o077 == 0
    async with embedded_server(tmp_path, passwords=second) as server:
        late = server.settings.model_copy(update={"password": SecretStr(first[OPERATOR])})
        with pytest.raises(BrokerUnavailableError, match="refuses"):
            await Bus.connect(late, name="late", wait_s=10).__aenter__()


async def test_an_agent_waits_for_the_streams_that_only_the_operator_may_make(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with embedded_server(tmp_path, passwords=new_passwords()) as server:
        connecting = asyncio.create_task(Bus.connect(server.settings_for("labeller"), name="labeller").__aenter__())
        await wait_for(lambda: "the operator" in caplog.text, within_s=30)
        assert not connecting.done()
        async with Bus.connect(server.settings, name="cli", wait_s=10):
            async with asyncio.timeout(30):
                bus = await connecting
        await bus.connection.close()
