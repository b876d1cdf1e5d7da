import asyncio
import itertools
from collections.abc import Awaitable, Callable

import pytest
from nats.js import JetStreamContext
from nats.js.errors import APIError

from agents.words.events import ImagesLabelled, RoundClosed
from bus.broker.server import EmbeddedServer
from bus.broker.topology import STREAMS, ensure_topology
from bus.client import Bus, Published
from bus.errors import ConflictingEventError, MalformedEventError
from bus.words.envelope import new_event
from bus.words.payload import Payload
from bus.words.subjects import event_subject
from bus.words.values import Ref
from tests.broker.bus.conftest import failed

Say = Callable[[Payload], Awaitable[Published]]


@pytest.fixture(params=["alone", "among others"])
def say(request: pytest.FixtureRequest, bus: Bus, unique_run: str) -> Say:
    """The two ways to publish: what holds for one event holds for each of many."""
    others = itertools.count(1000)

    async def among_others(data: Payload) -> Published:
        around = [failed(unique_run, next(others)) for _ in range(2)]
        return (await bus.publish_many([around[0], data, around[1]]))[1]

    return bus.publish if request.param == "alone" else among_others


async def test_an_event_is_created_once_and_an_equal_one_is_recognised(bus: Bus, unique_run: str, say: Say) -> None:
    first = await say(failed(unique_run))
    again = await say(failed(unique_run))
    assert first.created
    assert not again.created
    assert (again.sequence, again.event.id) == (first.sequence, first.event.id)
    assert bus.statistics().repeated == 1


async def test_second_round_closed_event_is_refused_by_the_broker(
    raw: JetStreamContext, unique_run: str, say: Say
) -> None:
    closed = RoundClosed(run=unique_run, round=1, reason="quorum", accepted=1, missing=0, rejected=0, through=1)
    await say(closed)
    with pytest.raises(ConflictingEventError) as caught:
        await say(closed.model_copy(update={"accepted": 2}))
    assert caught.value.code == "conflicting_event"
    with pytest.raises(APIError) as refused:
        await raw.publish(event_subject(closed), b"{}", headers={"Nats-Expected-Last-Subject-Sequence": "0"})
    assert refused.value.err_code == 10071


async def test_of_two_publishers_at_the_same_time_one_wins_and_both_know_the_winner(
    bus: Bus, nats: EmbeddedServer, unique_run: str
) -> None:
    async with Bus.connect(nats.settings, name="other", wait_s=10) as other:
        results = await asyncio.gather(*[one.publish(failed(unique_run, r)) for r in range(20) for one in (bus, other)])
    for mine, theirs in zip(results[::2], results[1::2], strict=True):
        assert mine.created != theirs.created
        assert mine.event.id == theirs.event.id


async def test_a_malformed_event_is_superseded(bus: Bus, raw: JetStreamContext, unique_run: str, say: Say) -> None:
    data = failed(unique_run)
    bad = await raw.publish(event_subject(data), b"not an event")
    assert await bus.find(event_subject(data)) is None
    published = await say(data)
    assert published.created
    assert published.sequence > bad.seq
    found = await bus.find(event_subject(data))
    assert found is not None
    assert found.event.data == data


async def test_what_cannot_be_read_hides_no_event_that_came_before_it(
    bus: Bus, raw: JetStreamContext, unique_run: str, say: Say
) -> None:
    first = await say(failed(unique_run))
    for _ in range(3):
        await raw.publish(event_subject(failed(unique_run)), b"nonsense")
    found = await bus.find(event_subject(failed(unique_run)))
    assert found is not None
    assert (found.sequence, found.event.data) == (first.sequence, failed(unique_run))
    again = await say(failed(unique_run))
    assert (again.created, again.sequence) == (False, first.sequence)
    with pytest.raises(ConflictingEventError):
        await say(failed(unique_run).model_copy(update={"reason": "something else"}))


async def test_of_several_events_on_a_subject_the_first_is_found_and_compared_with(
    bus: Bus, raw: JetStreamContext, unique_run: str, say: Say
) -> None:
    """The header that makes a subject write-once is the publisher's to send; one without it writes a second event."""
    subject = event_subject(failed(unique_run))
    await raw.publish(subject, b"nonsense")
    first = await say(failed(unique_run))
    second = failed(unique_run).model_copy(update={"reason": "second"})
    await raw.publish(subject, new_event(second, source="plain").to_json())
    found = await bus.find(subject)
    assert found is not None
    assert (found.sequence, found.event.data) == (first.sequence, failed(unique_run))
    assert (await say(failed(unique_run))).sequence == first.sequence
    with pytest.raises(ConflictingEventError):
        await say(second)


async def test_an_event_on_the_wrong_subject_does_not_count_as_said(
    raw: JetStreamContext, unique_run: str, say: Say
) -> None:
    data = failed(unique_run, 1)
    await raw.publish(event_subject(data), new_event(failed(unique_run, 2), source="test").to_json())
    assert (await say(data)).created


async def test_many_events_keep_their_order_and_the_first_conflict_is_raised_after_all_are_written(
    bus: Bus, unique_run: str
) -> None:
    await bus.publish(failed(unique_run, 3, "something else"))
    equal = await bus.publish(failed(unique_run, 5))
    with pytest.raises(ConflictingEventError, match=r"failed\.3"):
        await bus.publish_many(failed(unique_run, number) for number in range(300))
    results = await bus.publish_many(failed(unique_run, number) for number in range(300) if number != 3)
    assert not any(one.created for one in results)
    assert results[4].sequence == equal.sequence
    others = [one.sequence for one in results if one.sequence != equal.sequence]
    assert others == sorted(others)


async def test_the_cause_of_an_event_is_kept_with_its_trace(bus: Bus, unique_run: str) -> None:
    cause = (await bus.publish(failed(unique_run, 1))).event
    effect = (await bus.publish(failed(unique_run, 2), cause=cause)).event
    assert effect.causationid == cause.id
    assert effect.traceparent is not None
    assert cause.traceparent is not None
    assert effect.traceparent.split("-")[1] == cause.traceparent.split("-")[1]


async def test_an_event_that_is_too_large_is_refused_before_it_is_sent(unique_run: str, say: Say) -> None:
    ref = Ref(name=f"sha256-{'0' * 64}", size=0, sha256="0" * 64)
    labels = ImagesLabelled(run=unique_run, user="u", shard=ref, labels=(10**70,) * 1000, provider="truth")
    with pytest.raises(MalformedEventError, match="bytes long"):
        await say(labels)


async def test_the_topology_can_be_set_up_again_and_mends_what_differs(bus: Bus, raw: JetStreamContext) -> None:
    info = await raw.stream_info("DLQ")
    await raw.update_stream(info.config.evolve(description="changed by hand"))
    await ensure_topology(raw)
    await ensure_topology(raw)
    for wanted in STREAMS:
        assert wanted.name is not None
        found = (await raw.stream_info(wanted.name)).config
        assert (found.description, found.subjects) == (wanted.description, wanted.subjects)
    events = (await raw.stream_info("EVENTS")).config
    assert (events.deny_delete, events.deny_purge, events.max_msg_size) == (True, True, 65536)


async def test_events_cannot_be_purged(bus: Bus, raw: JetStreamContext, unique_run: str) -> None:
    await bus.publish(failed(unique_run))
    with pytest.raises(APIError):
        await raw.purge_stream("EVENTS", subject=f"ev.{unique_run}.>")
