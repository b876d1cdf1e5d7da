"""What the API is asked about images, and how its answer is read: pure, without a client."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data.class_names import as_given

MAX_ENUM = 200
"""More classes than this stand in the prompt alone: the API takes no larger enumeration safely."""
UNKNOWN = "I don't know"
_INSTRUCTIONS = (
    "You label images for training a classifier. For each image choose the one class that names what it shows, and "
    f"write the class exactly as given. If no class fits, or you cannot tell, write: {UNKNOWN}"
)
_VALUE = re.compile(r"[{\[]")
_MAX_VALUES, _MAX_DEPTH = 50, 4
"""How many brackets of a reply are tried, and how deep in a value answers may lie."""
_SAYS_CLASS = frozenset({"class", "class_name", "label", "category", "answer", "prediction"})
_SCHEMA_WORDS = frozenset({"$ref", "type", "enum"})
_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


class MalformedReply(Exception):
    """The text of a reply does not hold what was asked for; ``incomplete`` when it is JSON all the same."""

    def __init__(self, message: str, *, incomplete: bool) -> None:
        super().__init__(message)
        self.incomplete = incomplete


@dataclass(frozen=True)
class Prompt:
    """The question for one set of classes and one level of detail; ``version`` changes with anything in it."""

    classes: tuple[str, ...]
    detail: Literal["low", "high"] = "low"

    @cached_property
    def system(self) -> str:
        """The instructions, with all classes."""
        return f"{_INSTRUCTIONS}\nClasses, one a line:\n" + "\n".join(self.names)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The classes as they are asked for: a name that several share stands once, as nobody could see an id."""
        return tuple(dict.fromkeys(as_given(self.classes)))

    @cached_property
    def version(self) -> str:
        """Names the question in events and in the cache."""
        content = json.dumps([self.system, self.schema(1), self.detail])
        return f"1-{self.detail}-{hashlib.sha256(content.encode()).hexdigest()[:16]}"

    @property
    def answer_tokens(self) -> int:
        """An upper estimate of the tokens that the answer about one image has."""
        return 12 + math.ceil(max(len(name) for name in (*self.names, UNKNOWN)) / 3)

    def schema(self, images: int) -> dict[str, Any]:
        """JSON schema of the answer: one class for each of ``image_1`` to ``image_<images>``."""
        answer: dict[str, Any] = {"type": "string"}
        if len(self.names) <= MAX_ENUM:
            answer["enum"] = list(dict.fromkeys((*self.names, UNKNOWN)))
        names = [_key(index) for index in range(images)]
        return {
            "type": "object",
            "properties": {name: {"$ref": "#/$defs/class"} for name in names},
            "required": names,
            "additionalProperties": False,
            "$defs": {"class": answer},
        }

    def schema_text(self, images: int) -> str:
        """The schema as it is sent."""
        return json.dumps(self.schema(images))

    def request(self, images: Sequence[NDArray[np.uint8]]) -> dict[str, Any]:
        """The arguments of a chat completion about these images, uint8 [height, width, channels] each."""
        content: list[dict[str, Any]] = []
        for index, image in enumerate(images):
            content.append({"type": "text", "text": f"{_key(index)}:"})
            content.append({"type": "image_url", "image_url": {"url": data_url(image), "detail": self.detail}})
        schema = {"name": "labels", "strict": True, "schema": self.schema(len(images))}
        return {
            "messages": [{"role": "system", "content": self.system}, {"role": "user", "content": content}],
            "response_format": {"type": "json_schema", "json_schema": schema},
            "temperature": 0,
            # Twice the estimate: a reply that runs away costs no more than that.
            "max_completion_tokens": 2 * (16 + len(images) * self.answer_tokens),
        }

    def read(self, text: str, images: int) -> list[str]:
        """The answer about each image.

        They come from the first JSON value that has them, also in a code fence, among words, or in another value; or
        from several, as an object a line.

        Raises:
            MalformedReply: the text is cut off, has no JSON, or no answer for one of the images.
        """
        keys = [_key(index) for index in range(images)]
        values = list(_json_values(text))
        for some in (*([value] for value in values), values):
            if some and (answers := _answers(some, keys)) is not None:
                return answers
        problem = f"its JSON lacks a text for one of {keys[0]} to {keys[-1]}" if values else "it is no JSON"
        raise MalformedReply(problem, incomplete=bool(values))


def _json_values(text: str) -> Iterator[Any]:
    """The JSON objects and lists that stand in ``text`` one after another, as far as few brackets are tried."""
    with contextlib.suppress(ValueError, RecursionError):
        if isinstance(inner := json.loads(text), str):
            # JSON that was encoded twice.
            yield from _json_values(inner)
            return
    decoder, at = json.JSONDecoder(), 0
    for _ in range(_MAX_VALUES):
        begin = _VALUE.search(text, at)
        if begin is None:
            return
        try:
            value, at = decoder.raw_decode(text, begin.start())
        except (ValueError, RecursionError):
            at = begin.end()
        else:
            yield value


def _answers(values: Sequence[Any], keys: Sequence[str]) -> list[str] | None:
    """The answers by key that JSON values hold at any depth, or those of a list that is all that one of them holds."""
    found: dict[str, str] = {}
    level = list(values)
    for _ in range(_MAX_DEPTH):
        for one in level:
            for key, answer in _named(one, keys):
                if (text := _text(answer)) is not None:
                    found.setdefault(key, text)
        level = [inner for one in level for inner in _inside(one)]
    if found.keys() == set(keys):
        return [found[key] for key in keys]
    (value, *more) = values
    while isinstance(value, dict) and len(value) == 1:
        (value,) = value.values()
    if not found and not more and isinstance(value, list) and len(value) == len(keys):
        texts = [_text(one) for one in value]
        return [text for text in texts if text is not None] if None not in texts else None
    return None


def _named(value: Any, keys: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """What an object says of images: ``{"image_1": "cat"}``, or ``{"image": "image_1", "label": "cat"}``."""
    if not isinstance(value, dict):
        return
    for name, one in value.items():
        if (key := _as_key(name)) in keys:
            yield key, one
        elif (key := _as_key(one)) in keys:
            rest = {other: answer for other, answer in value.items() if other != name}
            yield key, rest


def _as_key(name: Any) -> str:
    """``Image 1`` and ``image-1`` mean ``image_1``."""
    return re.sub(r"^image[ _-]?(?=[0-9]+$)", "image_", name.strip().casefold()) if isinstance(name, str) else ""


def _text(value: Any) -> str | None:
    """A text, the only one in a list, or an object's: its only value, or the one under a name that says so.

    What stands in a schema is none.
    """
    if isinstance(value, dict):
        said = [one for name, one in value.items() if name in _SAYS_CLASS] if len(value) > 1 else list(value.values())
        value = said[0] if len(said) == 1 and not value.keys() & _SCHEMA_WORDS else None
    elif isinstance(value, list) and len(value) == 1:
        (value,) = value
    # Half a character, which JSON can say and no file keeps, becomes a question mark.
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else None


def _inside(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def data_url(image: NDArray[np.uint8]) -> str:
    """An image uint8 [height, width, channels] (grey, grey and alpha, RGB or RGBA) as the data URL of a PNG."""
    channels = image.shape[2]
    pixels = image[:, :, 0] if channels == 1 else image
    stream = io.BytesIO()
    Image.frombuffer(
        _MODES[channels], (image.shape[1], image.shape[0]), np.ascontiguousarray(pixels).tobytes(), "raw"
    ).save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def _key(index: int) -> str:
    return f"image_{index + 1}"
