"""What is wrong with foreign data, as a sentence for people: the one way to tell of a ``ValidationError``."""

from __future__ import annotations

from pydantic import ValidationError

_SENTENCES = {
    "json_invalid": "it is not JSON, or cut off",
    "json_type": "it is not JSON",
    "missing": "is missing",
    "model_type": "it is not an object with fields",
    "dict_type": "it is not an object with fields",
    "model_attributes_type": "it is not an object with fields",
}


def what_is_wrong(error: ValidationError, *, part: str = "field") -> str:
    """The first problem, with its place in the data: ``users.0.user is missing``. It never repeats the data.

    ``part`` is what its writer calls one: a message has fields, a strategy settings.
    """
    first = error.errors(include_url=False, include_input=False)[0]
    place, said = ".".join(map(str, first["loc"])), _SENTENCES.get(first["type"], "")
    if first["type"] == "missing":
        return f"{place} {said}"
    if first["type"] == "extra_forbidden":
        said = f"there is no such {part}"
    said = said or first["msg"].removeprefix("Value error, ")
    return f"{place}: {said}" if place else said
