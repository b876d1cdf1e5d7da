"""What may be declared and what may not, and that who knows no words reads none."""

import subprocess
import sys
from collections.abc import Iterator
from typing import Annotated

import pytest
from pydantic import BaseModel

from bus.words.envelope import new_event
from bus.words.payload import (
    EVERY_ROLE,
    Live,
    Payload,
    Token,
    UnknownRoleError,
    declared_for_a_while,
    new_role,
    payloads,
)
from bus.words.references import BULK, Document, references
from bus.words.subjects import address, filter_of
from bus.words.values import Name, Ref
from tests.builders import config, run_started


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    with declared_for_a_while():
        new_role("porter")
        yield


def test_a_class_without_a_type_is_a_base_whose_tokens_its_words_have_first() -> None:
    before = payloads()

    class RoomPayload(Payload):
        room: Annotated[Name, Token("name of the room")]

    assert payloads() == before

    class DoorOpened(RoomPayload):
        TYPE = "door.opened"
        SAID_BY = ("porter",)
        door: Annotated[Name, Token("name of the door")]
        wide: bool

    assert payloads() == [*before, DoorOpened]
    assert address(DoorOpened) == "ev.{run}.door.opened.{room}.{door}"


def test_two_words_cannot_have_one_type() -> None:
    with pytest.raises(TypeError, match=r"both declared as run\.started"):

        class Other(Payload):
            TYPE = "run.started"
            SAID_BY = ("porter",)


@pytest.mark.parametrize(("type_", "said_by"), [("opened", ("porter",)), ("door.Opened.x", ("porter",)), ("a.b", ())])
def test_an_event_needs_a_noun_and_a_verb_and_somebody_who_says_it(type_: str, said_by: tuple[str, ...]) -> None:
    with pytest.raises(TypeError, match="needs a TYPE"):
        type("Bad", (Payload,), {"TYPE": type_, "SAID_BY": said_by, "__module__": __name__})


def test_a_role_that_nobody_declared_is_refused_with_those_that_there_are() -> None:
    def declare() -> None:
        type("Bad", (Payload,), {"TYPE": "door.opened", "SAID_BY": ("dispatcer",), "__module__": __name__})

    with pytest.raises(UnknownRoleError, match=r"Bad\.SAID_BY names dispatcer, which is no role; there are cli, "):
        declare()
    # What was refused is not declared, and may be once its role is.
    assert "door.opened" not in [one.TYPE for one in payloads()]
    new_role("dispatcer")
    declare()


def test_what_could_lead_to_another_subject_is_no_token() -> None:
    with pytest.raises(TypeError, match=r"note cannot be a token"):

        class DoorOpened(Payload):
            TYPE = "door.opened"
            SAID_BY = ("porter",)
            note: Annotated[str, Token("anything")]

    with pytest.raises(TypeError, match="needs a TYPE"):

        class Letter(Live):
            TYPE = "dlq"
            SAID_BY = ("porter",)


def test_what_is_live_begins_with_its_type_and_may_be_heard_in_part() -> None:
    class Bell(Live):
        TYPE = "bell"
        SAID_BY = EVERY_ROLE
        house: Annotated[Name, Token("name of the house")]
        floor: Annotated[int, Token("number of the floor")]

    assert address(Bell) == "bell.{house}.{floor}"
    assert filter_of(Bell) == "bell.>"
    assert filter_of(Bell, house="h") == "bell.h.>"
    assert filter_of(Bell, floor="2") == "bell.*.2"
    assert Bell not in payloads()


def test_marks_are_found_however_deep_they_stand() -> None:
    def ref(digit: str) -> Ref:
        return Ref(name=f"sha256-{digit * 64}", size=1, sha256=digit * 64)

    class Leaf(BaseModel):
        plain: Ref

    class Tree(BaseModel):
        first: Annotated[Ref, Document(Leaf)] | None
        none: Annotated[Ref, BULK] | None
        many: tuple[Annotated[Ref, BULK], ...]
        named: Annotated[dict[str, Ref | None], BULK]
        inner: tuple[Leaf, ...]

    tree = Tree(
        first=ref("1"),
        none=None,
        many=(ref("2"), ref("3")),
        named={"a": ref("4"), "b": None},
        inner=(Leaf(plain=ref("5")),),
    )
    found = [(one.ref.sha256[0], one.document, one.bulk) for one in references(tree)]
    assert found == [("1", Leaf, False), ("2", None, True), ("3", None, True), ("4", None, True), ("5", None, False)]


def test_a_process_that_knows_no_words_says_so_and_judges_no_event() -> None:
    event = new_event(run_started(config()), source="test").to_json()
    script = """
import sys
from collections.abc import Iterator
from bus.errors import FedbusError
from bus.words.envelope import parse_event
try:
    parse_event(sys.stdin.buffer.read())
except FedbusError as error:
    print(error.code, error.message, error.hint, sep=": ")
"""
    done = subprocess.run([sys.executable, "-c", script], input=event, capture_output=True, check=True, timeout=60)
    assert done.stdout.decode().startswith("no_words: no event is declared in this process: import the module")
