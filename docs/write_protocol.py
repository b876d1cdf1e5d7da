"""Writes the parts of docs/protocol.md that follow from the code: messages, values, codes, limits and examples.

``python docs/write_protocol.py`` writes them between their marks and leaves the words around them as they are; with
``--check`` it exits 1 when the page is stale.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, get_args

import numpy as np
from protocol_examples import AUGMENTATION, EXAMPLES, SPEC, TASK  # beside this script
from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from written_page import keep

from agents.core.exchange import messages as said
from agents.core.exchange.answers import ERRORS, FAREWELLS, REJECTIONS
from agents.core.exchange.leases import RETURN_S
from agents.core.exchange.presence import HELLO_S, SILENT_HEARTBEATS
from agents.core.learning.augment import augment, mix
from agents.core.learning.encodings import BLOCK, encode_update
from agents.core.learning.magnitudes import LARGEST_VALUE
from agents.gateway.patience import FRAMES_PER_S, MAX_FRAGMENTS
from agents.gateway.settings import GatewaySettings
from agents.words.events import TaskAssigned, UpdateMetrics
from agents.words.run_config import AugmentationSpec, TaskSpec
from artifacts.manifest import (
    ArtifactFile,
    ArtifactManifest,
    BuildFacts,
    MemoryFacts,
    ModelFacts,
    OptimizerFacts,
    PrefixFacts,
    TrainableTensor,
)
from bus.words.values import Ref

PAGE = Path(__file__).resolve().parent / "protocol.md"
PART = re.compile(r"(<!-- written: ([a-z-]+) -->\n).*?(<!-- /written -->)", re.DOTALL)


def example(kind: type[BaseModel]) -> str:
    """The example of a message, as JSON in one block."""
    (one,) = (one for one in EXAMPLES if type(one) is kind)
    return code_block(one)


def code_block(one: BaseModel) -> str:
    """What goes over the wire, with line breaks for people."""
    data = json.loads(one.model_dump_json())
    text = json.dumps(data, ensure_ascii=False)
    if len(text) > 110:
        lines = (f" {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in data.items())
        text = "{\n" + ",\n".join(lines) + "\n}"
    return f"```json\n{text}\n```"


# Fields

SECTIONS = {
    "Ref": "ref",
    "TaskAssigned": "taskassigned",
    "UpdateMetrics": "updatemetrics",
    "AugmentationSpec": "augmentationspec",
    "ModelFacts": "modelfacts",
    "OptimizerFacts": "optimizerfacts",
    "TrainableTensor": "trainabletensor",
    "ArtifactFile": "artifactfile",
    "PrefixFacts": "prefixfacts",
    "MemoryFacts": "memoryfacts",
    "BuildFacts": "buildfacts",
}
BOUNDS = {"minimum": "≥ {}", "maximum": "≤ {}", "exclusiveMinimum": "> {}", "exclusiveMaximum": "< {}"}
TYPES = {"integer": "integer", "number": "number", "boolean": "true or false", "string": "text", "null": "null"}


def type_of(schema: dict[str, Any]) -> str:
    """A JSON schema in words."""
    if "const" in schema:
        return f"`{json.dumps(schema['const'])}`"
    if "enum" in schema:
        return "one of " + ", ".join(f"`{json.dumps(one)}`" for one in schema["enum"])
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[1]
        return f"[{name}](#{SECTIONS[name]})" if name in SECTIONS else "any JSON"
    if "anyOf" in schema:
        return " or ".join(type_of(one) for one in schema["anyOf"])
    kind = schema.get("type")
    if kind == "array":
        inner = type_of(schema.get("items", {}))
        counts = [
            text.format(schema[key])
            for key, text in (("minItems", "at least {}"), ("maxItems", "at most {}"))
            if key in schema
        ]
        return f"list of {inner}" + (f"; {', '.join(counts)}" if counts else "")
    if kind == "object":
        values = next(iter(schema.get("patternProperties", {}).values()), schema.get("additionalProperties"))
        return f"object of {type_of(values)}" if isinstance(values, dict) else "object"
    if kind is None:
        return "any JSON"
    words = [TYPES[kind]]
    words += [text.format(f"{schema[key]:,}") for key, text in BOUNDS.items() if key in schema]
    if "maxLength" in schema:
        words.append(f"at most {schema['maxLength']} characters")
    if "pattern" in schema:
        words.append(f"matches `{schema['pattern']}`")
    return ", ".join(words)


def fields(kind: type[BaseModel]) -> str:
    """A table of all fields."""
    properties = kind.model_json_schema().get("properties", {})
    if list(properties) == ["type"]:
        return ""
    rows = ["| field | type and bounds | if left out | |", "| --- | --- | --- | --- |"]
    for name, field in kind.model_fields.items():
        if name == "type":
            continue
        schema = properties[name]
        default = "must be there"
        if not field.is_required():
            value = field.get_default(call_default_factory=True)
            default = "" if value is PydanticUndefined else f"`{json.dumps(value)}`"
        words = (field.description or "").replace("|", "\\|")
        rows.append(f"| `{name}` | {type_of(schema).replace('|', chr(92) + '|')} | {default} | {words} |")
    return "\n".join(rows)


def summary(kind: type[BaseModel]) -> str:
    """What a class says of itself, for readers of Markdown."""
    paragraphs = inspect.cleandoc(kind.__doc__ or "").split("\n\n")
    return "\n\n".join(" ".join(one.split()) for one in paragraphs).replace("``", "`")


def messages(union: object) -> str:
    """A section for each message of one direction."""
    parts = []
    for kind in get_args(get_args(union)[0]):
        name = kind.model_fields["type"].default
        parts.append("\n\n".join(part for part in (f"#### {name}", summary(kind), fields(kind), example(kind)) if part))
    return "\n\n".join(parts)


def values(*kinds: type[BaseModel]) -> str:
    """A section for each kind of value."""
    return "\n\n".join(f"#### {kind.__name__}\n\n{summary(kind)}\n\n{fields(kind)}" for kind in kinds)


def table(head: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> str:
    """A Markdown table."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)


# Codes and limits


def section(code: str) -> str:
    """A link to the code's section."""
    return f"[`{code}`](errors.md#{code})"


def closings() -> str:
    """Every way in which a connection ends."""
    shown = [(one.code, f"`{one.reason}`", *meaning) for one, meaning in FAREWELLS.items()]
    below = [
        (1008, "the code of an `error`", "that error was fatal, or one too many", "What the code says, above."),
        (1009, "any", "a frame of more than 512 KiB and 12 bytes", "Come back; send smaller chunks."),
        (1002, "any", "a broken frame, or too many of them", "Come back; send whole messages in one frame."),
        (1007, "any", "text that is not UTF-8", "Come back."),
        (1006, "none", "the network or the gateway is gone, or what it sent was not read", "Come back."),
    ]
    return table(("code", "reason", "when", "then"), shown + below)


def errors() -> str:
    """Every code of ``error``."""
    rows = (
        (section(code), "yes" if one.fatal else "", "" if one.fatal or not one.counts else "yes", one.then)
        for code, one in ERRORS.items()
    )
    return table(("code", "fatal", "counts", "then"), rows)


def rejections() -> str:
    """Every code of ``upload.rejected``."""
    rows = ((section(code), one.when, "yes" if one.counts else "") for code, one in REJECTIONS.items())
    return table(("code", "when", "counts"), rows)


def limits() -> str:
    """Timers and bounds, as they are unless the operator set others."""
    fields_of, size = GatewaySettings.model_fields, f"{said.MAX_TEXT_BYTES // 1024} KiB"

    def setting(name: str) -> object:
        value = fields_of[name].default
        return f"{value:,g}" if isinstance(value, float) else value

    rows = [
        ("from the connection to a welcome `hello`", f"{HELLO_S:g} s", "closed: `no_hello`"),
        (
            "silence of a client, in heartbeats (`welcome.heartbeat_s`)",
            f"{SILENT_HEARTBEATS} of {setting('heartbeat_s')} s",
            "closed: `silence`",
        ),
        ("return of a client that is gone (`welcome.lease_s`)", f"{setting('lease_s')} s", "its tasks go to others"),
        ("the same, before others may have its tasks too", f"{RETURN_S:g} s", "the first valid update counts"),
        ("a text message", size, "error `too_large`"),
        ("bytes of one chunk (`welcome.chunk_bytes` is what to send)", f"{said.MAX_CHUNK_BYTES // 1024} KiB", "1009"),
        ("tasks that a client holds or waits for", said.MAX_SLOTS, "error `too_many`"),
        ("an update", f"{fields_of['max_upload_bytes'].default >> 30} GiB", "rejected: `size`"),
        ("bad messages of one connection", setting("max_errors"), "closed with the last one's code"),
        ("rejected updates in a row", setting("max_rejections"), f"shut out for {setting('shut_out_s')} s"),
        ("the same, of one token at one address", setting("max_address_rejections"), "the same"),
        ("tasks held under one token", setting("max_token_tasks"), "no more are assigned"),
        ("messages a second", setting("messages_per_s"), "read more slowly"),
        ("frames a second", f"{FRAMES_PER_S:g}", "1002"),
        ("frames of one message", MAX_FRAGMENTS, "1002"),
        ("wrong tokens a minute from one address", setting("max_failures"), "error `too_many_failures`, HTTP 429"),
        ("the head of an HTTP request", f"{setting('request_s')} s", "cut"),
        ("an answer that nobody reads", f"{setting('stall_s')} s", "cut"),
    ]
    return table(("what", "at most", "past that"), rows)


# Arithmetic


def encodings() -> str:
    """Bytes of a small vector in every encoding."""
    delta = np.array([0.5, -1.0, 0.0, 0.25, 127.0], np.float32)
    rows = [(f"`{name}`", f"`{encode_update(delta, name).hex(' ')}`") for name in ENCODINGS]
    numbers = ", ".join(f"{value:g}" for value in delta)
    return f"The update [{numbers}], as hexadecimal bytes (int8 has blocks of {BLOCK} values, here one):\n\n" + table(
        ("encoding", "bytes"), rows
    )


ENCODINGS = ("float32", "float16", "int8", "topk:0.4")


def augmentation() -> str:
    """A small image and its copies."""
    image = np.arange(0, 160, 10, dtype=np.uint8).reshape(1, 4, 4, 1)
    seed, copies = TASK.seed, 2
    made = augment(image, np.array([0]), copies=copies, seed=seed, spec=AUGMENTATION)[0, 1:]
    shown = "\n".join(f"copy {at}: {json.dumps(copy[..., 0].tolist())}" for at, copy in enumerate(made, 1))
    mixed = mix(np.array([1], np.uint32))[0]
    return (
        f"`mix(1) = {mixed}`. The image `{json.dumps(image[0, ..., 0].tolist())}` (4 by 4, one channel) at place 0,\n"
        f"with seed {seed} and the ranges of the TaskSpec above:\n\n```\n{shown}\n```"
    )


def bound() -> str:
    """The largest magnitude."""
    return f"No value may be past ±{LARGEST_VALUE:g}."


PARTS: dict[str, Callable[[], str]] = {
    "from-client": lambda: messages(said.ClientMessage),
    "from-gateway": lambda: messages(said.ServerMessage),
    "task": lambda: values(TaskAssigned, Ref),
    "spec": lambda: f"{fields(TaskSpec)}\n\n{code_block(SPEC)}\n\n{values(AugmentationSpec)}",
    "manifest": lambda: (
        f"{fields(ArtifactManifest)}\n\n"
        f"{values(ModelFacts, OptimizerFacts, TrainableTensor, ArtifactFile, PrefixFacts, MemoryFacts, BuildFacts)}"
    ),
    "metrics": lambda: values(UpdateMetrics),
    "closings": closings,
    "errors": errors,
    "rejections": rejections,
    "limits": limits,
    "encodings": encodings,
    "augmentation": augmentation,
    "bound": bound,
}


def rendered(page: str) -> str:
    """The page with every part written anew.

    Raises:
        KeyError: a mark names a part that there is not.
    """
    return PART.sub(lambda found: f"{found[1]}{PARTS[found[2]]()}\n{found[3]}", page)


def main(arguments: list[str]) -> int:
    """Writes the page, or says by the exit code whether it is up to date."""
    page = PAGE.read_text()
    missing = PARTS.keys() - {name for _, name, _ in PART.findall(page)}
    for name in sorted(missing):
        sys.stderr.write(f"{PAGE.name} has no place for {name}\n")
    return keep(PAGE, rendered(page), arguments, sound=not missing)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
