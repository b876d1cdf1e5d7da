"""Describes all that is declared on the bus as an AsyncAPI 3 document."""

from __future__ import annotations

import inspect
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from bus.words.envelope import CONTENT_TYPE, TYPE_PREFIX
from bus.words.payload import Payload, Word, live_words, payloads
from bus.words.subjects import EVENT_STREAM, address

_SCHEMAS = "#/components/schemas/{model}"


def document(description: str) -> dict[str, Any]:
    """The AsyncAPI 3 document as JSON values; ``description`` says what it describes."""
    durable, live = payloads(), live_words()
    _, schemas = models_json_schema([(word, "validation") for word in (*durable, *live)], ref_template=_SCHEMAS)
    channels: dict[str, Any] = {}
    messages: dict[str, Any] = {}
    for payload in durable:
        messages[payload.__name__] = _event_message(payload)
        channels[payload.TYPE] = _channel(payload, f"stream {EVENT_STREAM}, written once")
    for word in live:
        messages[word.__name__] = _message(word, word.__name__, {"$ref": _ref(word)}, "application/json")
        channels[word.__name__.lower()] = _channel(word, "core NATS, not kept")
    return {
        "asyncapi": "3.0.0",
        "info": {"title": "fedbus", "version": "1", "description": description},
        "defaultContentType": "application/json",
        "channels": channels,
        "operations": {
            f"{action}.{key}": _operation(action, key) for key in channels for action in ("send", "receive")
        },
        "components": {"messages": messages, "schemas": schemas["$defs"]},
    }


def _channel(word: type[Word], kept: str) -> dict[str, Any]:
    return {
        "address": address(word),
        "description": kept,
        "messages": {word.__name__: {"$ref": f"#/components/messages/{word.__name__}"}},
        "parameters": {name: {"description": token.description} for name, token in word.TOKENS.items()},
    }


def _operation(action: str, channel: str) -> dict[str, Any]:
    return {"action": action, "channel": {"$ref": f"#/channels/{channel}"}}


def _event_message(payload: type[Payload]) -> dict[str, Any]:
    """A message whose body is the CloudEvents envelope around the payload."""
    text = {"type": "string"}
    envelope = {
        "type": "object",
        "required": ["specversion", "id", "source", "type", "data"],
        "properties": {
            "specversion": {"const": "1.0"},
            "id": {**text, "minLength": 1, "maxLength": 128},
            "source": {**text, "minLength": 1, "maxLength": 256},
            "type": {"const": TYPE_PREFIX + payload.TYPE},
            "subject": text,
            "time": {**text, "format": "date-time"},
            "datacontenttype": text,
            "traceparent": {**text, "description": "W3C Trace Context"},
            "correlationid": {**text, "description": "the run"},
            "causationid": {**text, "description": "id of the event that this one answers"},
            "data": {"$ref": _ref(payload)},
        },
    }
    return _message(payload, payload.TYPE, envelope, CONTENT_TYPE)


def _message(model: type[BaseModel], name: str, body: dict[str, Any], content_type: str) -> dict[str, Any]:
    return {"name": name, "summary": inspect.getdoc(model), "contentType": content_type, "payload": body}


def _ref(model: type[BaseModel]) -> str:
    return _SCHEMAS.format(model=model.__name__)
