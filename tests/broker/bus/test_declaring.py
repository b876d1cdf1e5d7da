"""An event that only this module knows is found wherever events are known: its class says all there is to say."""

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest

from bus.broker.permissions import may_publish, new_passwords
from bus.broker.server import EmbeddedServer, embedded_server
from bus.client import Bus, CaughtUp
from bus.errors import FedbusError, MalformedEventError, MalformedSubjectError, PermissionDeniedError
from bus.recording.files import load_recording, record
from bus.words.asyncapi import document
from bus.words.envelope import new_event, parse_event
from bus.words.payload import OPERATOR, Payload, Token, declared_for_a_while, new_role, roles
from bus.words.references import BULK, Document
from bus.words.subjects import event_subject, events_of, events_of_type, parse_event_subject
from bus.words.values import Frozen, Name, Ref

Hang = Callable[..., Any]


class Catalogue(Frozen):
    """What is written of a picture: an essay, and a photograph of its back that few need."""

    essay: Ref
    back: Annotated[Ref, BULK]


@pytest.fixture
def hung() -> Iterator[Hang]:
    """The class of the event, declared for one test."""
    with declared_for_a_while():
        curator = new_role("curator")

        class PictureHung(Payload):
            """A picture hangs on a wall."""

            TYPE = "picture.hung"
            SAID_BY = (OPERATOR, curator)
            room: Annotated[Name, Token("name of the room")]
            wall: Annotated[int, Token("number of the wall")]
            catalogue: Annotated[Ref, Document(Catalogue)]
            picture: Annotated[Ref, BULK]

        yield PictureHung


@pytest.fixture
async def bus(tmp_path: Path) -> AsyncIterator[Bus]:
    """On a broker of its own: everything that no event leads to is deleted there."""
    async with embedded_server(tmp_path / "nats") as server, Bus.connect(server.settings, name="t", wait_s=10) as bus:
        yield bus


async def objects(bus: Bus, *, media_type: str = "application/json") -> dict[str, Ref]:
    """A catalogue with this media type, and what belongs to it, by name."""
    refs = {name: await bus.objects.put(name.encode()) for name in ("essay", "back", "picture")}
    catalogue = Catalogue(essay=refs["essay"], back=refs["back"])
    return refs | {"catalogue": await bus.objects.put(catalogue.model_dump_json().encode(), media_type=media_type)}


def example(hung: Hang, refs: dict[str, Ref] | None = None) -> Payload:
    nothing = Ref(name=f"sha256-{'0' * 64}", size=0, sha256="0" * 64)
    catalogue, picture = [(refs or {}).get(name, nothing) for name in ("catalogue", "picture")]
    payload: Payload = hung(run="shop", room="hall", wall=3, catalogue=catalogue, picture=picture)
    return payload


def test_its_subject_is_built_and_parsed(hung: Hang) -> None:
    data = example(hung)
    assert event_subject(data) == "ev.shop.picture.hung.hall.3"
    assert events_of_type("picture.hung") == "ev.*.picture.hung.>"
    assert parse_event_subject("ev.shop.picture.hung.hall.3").rest == ("hall", "3")
    with pytest.raises(MalformedSubjectError, match=r"{room}\.{wall}"):
        parse_event_subject("ev.shop.picture.hung.hall")
    assert parse_event(new_event(data, source="test").to_json()).data == data


async def test_it_is_said_once_and_read_back(hung: Hang, bus: Bus) -> None:
    data = example(hung)
    published = await bus.publish(data)
    assert not (await bus.publish(data)).created
    async with bus.follow(events_of("shop"), live=False) as items:
        read = [item async for item in items if not isinstance(item, CaughtUp)]
    assert [(one.sequence, one.event.data) for one in read] == [(published.sequence, data)]


async def test_who_declares_that_it_says_it_may_and_nobody_else(hung: Hang, tmp_path: Path) -> None:
    subject = event_subject(example(hung))
    assert [role for role in roles() if "ev.*.picture.hung.>" in may_publish(role)] == [OPERATOR, "curator"]
    async with contextlib.AsyncExitStack() as stack:
        server = await stack.enter_async_context(embedded_server(tmp_path / "nats", passwords=new_passwords()))
        assert isinstance(server, EmbeddedServer)
        operator, curator, labeller = [
            await stack.enter_async_context(Bus.connect(server.settings_for(role), name=role, wait_s=10))
            for role in (OPERATOR, "curator", "labeller")
        ]
        assert (await curator.publish(example(hung))).created
        assert not (await operator.publish(example(hung))).created
        with pytest.raises(PermissionDeniedError, match=subject):
            await labeller.publish(example(hung))


def test_it_is_described(hung: Hang) -> None:
    described = document("all")
    channel = described["channels"]["picture.hung"]
    assert channel["address"] == "ev.{run}.picture.hung.{room}.{wall}"
    assert channel["parameters"]["wall"] == {"description": "number of the wall"}
    assert {"send.picture.hung", "receive.picture.hung"} <= set(described["operations"])
    assert described["components"]["messages"]["PictureHung"]["summary"] == "A picture hangs on a wall."
    assert {"room", "wall", "picture"} <= set(described["components"]["schemas"]["PictureHung"]["properties"])


async def test_what_its_documents_lead_to_is_not_collected(hung: Hang, bus: Bus) -> None:
    # With another media type only the declaration tells that there is something to follow.
    refs = await objects(bus, media_type="text/plain")
    unneeded = await bus.objects.put(b"unneeded")
    await bus.publish(example(hung, refs))
    async with contextlib.aclosing(bus.expired_objects(0)) as expired:
        assert [ref async for ref in expired] == [unneeded]
    for ref in refs.values():
        assert len(await bus.objects.get(ref)) == ref.size


@pytest.mark.parametrize(
    ("include", "recorded"),
    [("replay", ["catalogue", "essay"]), ("all", ["catalogue", "essay", "picture", "back"])],
)
async def test_its_objects_are_recorded(
    hung: Hang, bus: Bus, tmp_path: Path, include: Any, recorded: list[str]
) -> None:
    refs = await objects(bus)
    await bus.publish(example(hung, refs))
    await record(bus, "shop", tmp_path / "shop.jsonl", include=include)
    recording = load_recording(tmp_path / "shop.jsonl")
    assert [stored.event.data for stored in recording.events] == [example(hung, refs)]
    assert list(recording.objects) == [refs[name].sha256 for name in recorded]


async def test_what_is_no_such_document_is_not_recorded(hung: Hang, bus: Bus, tmp_path: Path) -> None:
    refs = await objects(bus)
    await bus.publish(example(hung, refs | {"catalogue": refs["essay"]}))
    with pytest.raises(FedbusError, match="is no Catalogue"):
        await record(bus, "shop", tmp_path / "shop.jsonl")
    assert not list(tmp_path.glob("*.jsonl"))


def test_after_a_while_it_is_forgotten() -> None:
    with pytest.raises(MalformedEventError, match=r"unknown event type 'picture\.hung'"):
        events_of_type("picture.hung")
    assert "curator" not in roles()
