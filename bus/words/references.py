"""What objects a payload refers to, and what those refer to in turn: marks on fields, and how they are read."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel

from bus.words.values import Ref


@dataclass(frozen=True)
class Document:
    """Marks the references of a field: each leads to a JSON object that ``model`` reads, and needs what that names."""

    model: type[BaseModel]


@dataclass(frozen=True)
class Bulk:
    """Marks the references of a field: a recording holds the objects only if it holds everything."""


BULK = Bulk()


@dataclass(frozen=True)
class Reference:
    """A reference, and how its field is marked."""

    ref: Ref
    document: type[BaseModel] | None
    bulk: bool


def references(value: BaseModel) -> Iterator[Reference]:
    """Every reference inside a model, depth first in the order of its fields."""
    marks = _marks(type(value))
    for name in type(value).model_fields:
        yield from _inside(getattr(value, name), *marks[name])


def _inside(value: object, document: type[BaseModel] | None, bulk: bool) -> Iterator[Reference]:
    if isinstance(value, Ref):
        yield Reference(value, document, bulk)
    elif isinstance(value, BaseModel):
        yield from references(value)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _inside(item, document, bulk)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _inside(item, document, bulk)


@functools.cache
def _marks(model: type[BaseModel]) -> dict[str, tuple[type[BaseModel] | None, bool]]:
    """Of each field: the model of its documents, and whether it is bulk; marks count however deep they stand."""
    found = {}
    for name, field in model.model_fields.items():
        marks = [*field.metadata, *_nested(field.annotation)]
        documents = [mark.model for mark in marks if isinstance(mark, Document)]
        found[name] = (documents[0] if documents else None, BULK in marks)
    return found


def _nested(annotation: object) -> Iterator[Any]:
    yield from getattr(annotation, "__metadata__", ())
    for argument in get_args(annotation):
        yield from _nested(argument)
