"""Records a run as one file, events and the objects they need, and reads such files back, verified."""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import json
import os
from collections import deque
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, cast
from uuid import uuid4

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue, ValidationError

from bus.client import Bus, CaughtUp
from bus.errors import FedbusError, MalformedRecordingError
from bus.recording.formats import FORMAT, upgraded
from bus.recording.lines import malformed, numbered_lines
from bus.words.envelope import Stored, parse_event
from bus.words.problems import what_is_wrong
from bus.words.references import Reference, references
from bus.words.subjects import event_subject, events_of
from bus.words.values import Name, Ref

Include = Literal["replay", "all"]


class RecordingNameError(FedbusError):
    """A file of this name cannot be a recording."""

    code = "recording_name"


class _NoHeaderError(ValueError):
    """A file does not begin as recordings do."""


@dataclass(frozen=True)
class Recording:
    """A run as it was recorded: its events in stream order, and objects by SHA-256.

    ``format`` is that of the file; the events of an older one have been brought up to this version's.
    """

    run: str
    include: Include
    events: list[Stored]
    objects: dict[str, bytes]
    format: int = FORMAT


@dataclass(frozen=True)
class RecordingCounts:
    """What ``record`` wrote; ``object_bytes`` before base64 and compression."""

    events: int
    objects: int
    object_bytes: int


class _Header(BaseModel):
    model_config = ConfigDict(populate_by_name=True)

    version: int = Field(alias="fedbus-recording")
    run: Name
    include: Include
    events: int = Field(ge=0)
    objects: int = Field(ge=0)


class _EventLine(BaseModel):
    sequence: int = Field(ge=1)
    time: AwareDatetime
    subject: str
    event: dict[str, JsonValue]


class _ObjectLine(BaseModel):
    ref: Ref
    base64: str


def check_recording_name(path: Path) -> None:
    """Raises RecordingNameError for a file that could not be read back."""
    if not path.name.endswith((".jsonl", ".jsonl.gz")):
        raise RecordingNameError(f"{path.name} cannot be a recording", hint="let its name end in .jsonl or .jsonl.gz")


async def record(bus: Bus, run: str, path: Path, *, include: Include = "replay") -> RecordingCounts:
    """Writes ``run`` up to now to ``path`` (``.jsonl`` or ``.jsonl.gz``), complete or not at all.

    "replay" holds all that events and their documents refer to but what is marked as bulk (``bus.words.references``),
    "all" that too. The same run gives the same bytes.

    Raises:
        ObjectMissingError, ObjectCorruptError: an object that the recording needs cannot be read.
        RecordingNameError: ``path`` has another ending.
        FedbusError: the run has no events.
    """
    check_recording_name(path)
    events = await _events(bus, run)
    if not events:
        raise FedbusError(f"there is no run called {run!r}", hint="check its name; the page lists those that exist")
    refs = [ref async for ref in needed(bus, events, include)]
    header = _Header(version=FORMAT, run=run, include=include, events=len(events), objects=len(refs))
    with _writing(path) as file:
        _write(file, header.model_dump(by_alias=True))
        for stored in events:
            _write(
                file,
                {
                    "sequence": stored.sequence,
                    "time": stored.time.isoformat(),
                    "subject": event_subject(stored.event.data),
                    "event": json.loads(stored.event.to_json()),
                },
            )
        for ref in refs:
            data = await bus.objects.get(ref)
            _write(file, {"ref": ref.model_dump(), "base64": base64.b64encode(data).decode()})
    return RecordingCounts(len(events), len(refs), sum(ref.size for ref in refs))


def load_recording(path: Path) -> Recording:
    """The recording in ``path``; every event is brought up to date and parsed, and every object verified.

    Raises:
        MalformedRecordingError: it is damaged, cut off, too large, or of a format that is later than this version's
            or too old; says where.
        OSError: the file cannot be read.
    """
    header: _Header | None = None
    events: list[Stored] = []
    objects: dict[str, bytes] = {}
    number = 0
    for number, line in numbered_lines(path):
        try:
            fields = json.loads(line)
            if header is None:
                header = _header(fields)
            elif isinstance(fields, dict) and "event" in fields:
                events.append(_event(fields, header, events[-1].sequence if events else 0))
            else:
                ref, data = _object(fields)
                objects[ref.sha256] = data
        except (ValueError, RecursionError, FedbusError) as error:
            if header is None and isinstance(error, json.JSONDecodeError | UnicodeDecodeError | _NoHeaderError):
                raise _no_recording(path) from None
            raise malformed(path, number, _reason(error)) from None
    if header is None:
        raise _no_recording(path)
    if (len(events), len(objects)) != (header.events, header.objects):
        raise malformed(
            path,
            number,
            f"it ends with {len(events)} of {header.events} events and {len(objects)} of {header.objects} objects",
        )
    return Recording(header.run, header.include, events, objects, header.version)


async def _events(bus: Bus, run: str) -> list[Stored]:
    async with bus.follow(events_of(run), live=False) as items:
        return [item async for item in items if not isinstance(item, CaughtUp)]


async def needed(bus: Bus, events: list[Stored], include: Include) -> AsyncIterator[Ref]:
    """What a recording of these events holds: each object once, in the order in which the events come to them.

    The documents that an event leads to are followed; what is marked as bulk comes last of all that belongs to it.
    """
    seen: set[str] = set()
    followed: set[str] = set()
    for stored in events:
        waiting, bulk = deque(references(stored.event.data)), deque[Reference]()
        while waiting or (bulk and include == "all"):
            if waiting and waiting[0].bulk:
                bulk.append(waiting.popleft())
                continue
            one = (waiting or bulk).popleft()
            if one.ref.sha256 not in seen:
                seen.add(one.ref.sha256)
                yield one.ref
            if one.document is not None and one.ref.sha256 not in followed:
                followed.add(one.ref.sha256)
                waiting += references(await _read(bus, one.ref, one.document))


async def _read(bus: Bus, ref: Ref, model: type[BaseModel]) -> BaseModel:
    try:
        return model.model_validate_json(await bus.objects.get(ref))
    except ValidationError as error:
        raise FedbusError(f"object {ref.sha256} is no {model.__name__}: {what_is_wrong(error)}") from None


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[IO[bytes]]:
    """A file that becomes ``path`` when all went well; compressed the same way each time."""
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as raw:
            with contextlib.ExitStack() as stack:
                file: IO[bytes] = raw
                if path.suffix == ".gz":
                    file = cast(IO[bytes], stack.enter_context(gzip.GzipFile("", "wb", 6, raw, mtime=0)))
                yield file
            raw.flush()
            os.fsync(raw.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _write(file: IO[bytes], fields: dict[str, Any]) -> None:
    file.write(json.dumps(fields, separators=(",", ":")).encode() + b"\n")


def _header(fields: object) -> _Header:
    version = fields.get("fedbus-recording") if isinstance(fields, dict) else None
    if isinstance(version, int) and version > FORMAT:
        raise ValueError(f"it has format {version}, this version of fedbus reads up to {FORMAT}: install a later one")
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise _NoHeaderError
    return _Header.model_validate(fields)


def _event(fields: dict[str, Any], header: _Header, previous: int) -> Stored:
    line = _EventLine.model_validate(fields)
    event = parse_event(json.dumps(upgraded(line.event, header.version)).encode())
    if event_subject(event.data) != line.subject or event.data.run != header.run:
        raise ValueError(f"the event does not belong on {line.subject} of run {header.run}")
    if line.sequence <= previous:
        raise ValueError(f"sequence {line.sequence} does not follow {previous}")
    return Stored(line.sequence, line.time, event)


def _object(fields: object) -> tuple[Ref, bytes]:
    line = _ObjectLine.model_validate(fields)
    data = base64.b64decode(line.base64, validate=True)
    if len(data) != line.ref.size or hashlib.sha256(data).hexdigest() != line.ref.sha256:
        raise ValueError(f"the bytes of {line.ref.name} do not have its size and digest")
    return line.ref, data


def _no_recording(path: Path) -> MalformedRecordingError:
    return MalformedRecordingError(
        f"{path.name} is no recording: it does not begin with the header of one",
        hint="fedbus record RUN -o FILE.jsonl.gz writes one, and fedbus demo leaves one beside its report",
    )


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return what_is_wrong(error)
    if isinstance(error, json.JSONDecodeError | UnicodeDecodeError):
        return "it is not JSON"
    return str(error) or type(error).__name__
