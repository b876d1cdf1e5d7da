import re
from typing import Any

from agents.words.events import (
    PAYLOAD_BY_TYPE,
    ImagesLabelled,
    Payload,
    RoundExtended,
    RoundPayload,
    UpdateRejected,
    UserPayload,
)
from bus.words.asyncapi import PATH, document, rendered
from bus.words.subjects import event_subject


def test_the_document_in_docs_is_up_to_date() -> None:
    assert PATH.read_text() == rendered(), "run `python -m bus.words.asyncapi`"


def test_every_event_type_has_a_channel_with_the_subject_that_it_is_published_on() -> None:
    channels = document()["channels"]
    assert set(PAYLOAD_BY_TYPE) <= set(channels)
    for type_, payload in PAYLOAD_BY_TYPE.items():
        values = {"run": "R", "round": "7", "user": "U", "attempt": "A", "extension": "3"}
        address = re.sub(r"{(\w+)}", lambda match: values[match[1]], channels[type_]["address"])  # noqa: B023
        assert address == event_subject(_example(payload))


def _example(payload: type[Payload]) -> Payload:
    """Only the fields that the subject is made of."""
    fields: dict[str, Any] = {"run": "R"}
    fields |= {"round": 7} if issubclass(payload, RoundPayload) else {}
    fields |= {"user": "U"} if issubclass(payload, UserPayload | ImagesLabelled) else {}
    fields |= {"attempt": "A"} if payload is UpdateRejected else {}
    fields |= {"extension": 3} if payload is RoundExtended else {}
    return payload.model_construct(**fields)


def test_every_reference_leads_somewhere() -> None:
    whole = document()

    def check(value: object) -> int:
        if isinstance(value, list):
            return sum(check(item) for item in value)
        if not isinstance(value, dict):
            return 0
        target: object = whole
        if "$ref" in value:
            for step in value["$ref"].removeprefix("#/").split("/"):
                assert isinstance(target, dict)
                target = target[step]
        return ("$ref" in value) + sum(check(item) for item in value.values())

    assert check(whole) > 50
