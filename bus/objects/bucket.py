"""The stock JetStream Object Store format: chunks under a random subject each upload, and a meta message by name."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import re
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, NamedTuple

from nats.js.api import PubAck
from nats.js.errors import APIError
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from bus.broker.answers import WRONG_LAST_SEQUENCE
from bus.broker.connection import Connection
from bus.broker.direct_get import DirectMessage, read_at_leader, read_stored, stream_state
from bus.broker.pipelining import Ack, Pipeline
from bus.broker.topology import BUCKET, DELETION_STREAM, OBJECT_STREAM
from bus.words.subjects import deletion_subject
from bus.words.values import Ref

CHUNK = 512 * 1024
MEDIA_TYPE, FIRST_SEQUENCE = "media-type", "first-sequence"
_CHUNKS, _METAS = f"$O.{BUCKET}.C.", f"$O.{BUCKET}.M."
_WINDOW = 8
_ACK_S = 10.0
_MOST = 1 << 50
"""Bytes or chunks: more is no object."""
_PRINTABLE = re.compile(r"[ -~]{1,100}")


class Options(BaseModel):
    """Stock default of the chunk size."""

    max_chunk_size: int = Field(default=128 * 1024, ge=1, le=_MOST)


class Claim(NamedTuple):
    """Where somebody says that an object's bytes lie: they are there and have its digest, or it is not true."""

    nuid: str
    size: int
    chunks: int
    chunk_size: int
    first: int


class Meta(BaseModel):
    """The meta message of an object, as far as fedbus reads it; any role may write one, and it need not be true."""

    model_config = ConfigDict(extra="ignore")

    name: str
    nuid: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$", max_length=250)]
    size: int = Field(default=0, ge=0, le=_MOST)
    chunks: int = Field(default=0, ge=0, le=_MOST)
    deleted: bool = False
    headers: dict[str, list[str]] | None = None
    options: Options = Options()

    def header(self, key: str, default: str) -> str:
        """The first value of a header; the default for one that is no header of HTTP either."""
        value = ((self.headers or {}).get(key) or [default])[0]
        return value if _PRINTABLE.fullmatch(value) else default

    @property
    def first_sequence(self) -> int:
        """Of the chunks, or 0 where that is not said."""
        value = self.header(FIRST_SEQUENCE, "0")
        return int(value) if value.isdecimal() and len(value) < 19 else 0

    @property
    def claim(self) -> Claim:
        """What it says of the object's bytes."""
        return Claim(self.nuid, self.size, self.chunks, self.options.max_chunk_size, self.first_sequence)


@dataclass(frozen=True)
class Entry:
    """An object that is there: its meta message, with its place in the stream and the broker's time of it."""

    meta: Meta
    sequence: int
    stored_at: datetime


class Bucket:
    """Reads and writes the parts of objects."""

    def __init__(self, connection: Connection, pipeline: Pipeline, *, stall_s: float) -> None:
        self.connection = connection
        self._pipeline = pipeline
        self._stall_s = stall_s
        self._names: defaultdict[str, set[str]] = defaultdict(set)
        """Of each upload, the objects that were ever said to be its bytes, as far as metas were read for this."""
        self._named_up_to = 0

    async def find(self, name: str) -> tuple[Entry | None, int]:
        """An object that is there, and the sequence of whatever stands in its meta message's place (or 0)."""
        message = await self.connection.last_message(OBJECT_STREAM, meta_subject(name))
        if message is None:
            return None, 0
        sequence = message.seq or 0
        assert message.time is not None
        return _entry(message.data or b"", message.subject or "", sequence, message.time), sequence

    async def candidates(self, name: str) -> list[Meta]:
        """What was said of an object's parts, the newest first: any role may say something, and it need not be true."""
        return [one.meta for one in reversed(await self._entries(meta_subject(name)))]

    async def entries(self) -> list[Entry]:
        """Every object that is there, the longest unchanged first; what nobody can read hides nothing before it."""
        newest = {entry.meta.name: entry for entry in await self._entries(f"{_METAS}>")}
        return sorted(newest.values(), key=lambda entry: entry.sequence)

    async def _entries(self, subject: str, *, start: int = 1) -> list[Entry]:
        """All that was said of the objects from a sequence on and can be read, the oldest first."""
        async with contextlib.aclosing(self._stored(subject, start, 256)) as metas:
            found = [_entry(one.data, one.subject, one.sequence, one.time) async for one in metas]
        return [entry for entry in found if entry is not None]

    async def inspect(self, entry: Entry) -> tuple[bool, float]:
        """Whether all chunks of an object are there, and how old its meta message is, in seconds, for the broker."""
        subject = f"{_CHUNKS}{entry.meta.nuid}"
        state = await stream_state(self.connection, OBJECT_STREAM, subject)
        age = (state.now - entry.stored_at).total_seconds()
        return state.subjects.get(subject, 0) == entry.meta.chunks, age

    async def extent(self, meta: Meta) -> tuple[int, int]:
        """How many chunks of an object are there, and the sequence of the last one."""
        subject = f"{_CHUNKS}{meta.nuid}"
        state = await stream_state(self.connection, OBJECT_STREAM, subject)
        last = await self.connection.last_message(OBJECT_STREAM, subject)
        return state.subjects.get(subject, 0), (last.seq or 0) if last else 0

    async def now(self) -> datetime:
        """What time it is for the broker."""
        return (await stream_state(self.connection, OBJECT_STREAM, f"{_METAS}none")).now

    async def send(self, nuid: str, chunks: AsyncIterator[bytes]) -> tuple[int, int]:
        """Publishes the chunks, some at a time; the first one's sequence (or 0) and how many there were.

        Raises:
            nats.errors.Error, TimeoutError: a chunk may be missing, or stored twice.
        """
        await self.connection.connected()
        first = count = 0
        window: list[asyncio.Future[Ack]] = []
        try:
            async for chunk in chunks:
                window.append(await self._pipeline.send(f"{_CHUNKS}{nuid}", chunk))
                count += 1
                while len(window) >= _WINDOW or (window and window[0].done()):
                    sequence = await _acknowledged(window.pop(0))
                    first = first or sequence
            while window:
                sequence = await _acknowledged(window.pop(0))
                first = first or sequence
        finally:
            if window:
                await asyncio.wait(window, timeout=_ACK_S)
                self._pipeline.forget(window)
        return first, count

    async def write_meta(self, ref: Ref, nuid: str, *, first: int, chunks: int, replaces: int) -> bool:
        """Makes the chunks an object; false when somebody else was faster."""
        meta = {
            "name": ref.name,
            "bucket": BUCKET,
            "nuid": nuid,
            "size": ref.size,
            "chunks": chunks,
            "digest": "SHA-256=" + base64.urlsafe_b64encode(bytes.fromhex(ref.sha256)).decode(),
            "mtime": datetime.now(UTC).isoformat(),
            "headers": {MEDIA_TYPE: [ref.media_type], FIRST_SEQUENCE: [str(first)]},
            "options": {"max_chunk_size": CHUNK},
        }
        if await self._replace(ref.name, meta, replaces) is not None:
            return True
        there, _ = await self.find(ref.name)
        return there is not None and there.meta.nuid == nuid

    async def touch(self, entry: Entry) -> bool:
        """Makes an object new again without moving its bytes; false when it changed or went meanwhile."""
        message = await self.connection.last_message(OBJECT_STREAM, meta_subject(entry.meta.name))
        if message is None or message.seq != entry.sequence:
            return False
        meta = json.loads(message.data or b"") | {"mtime": datetime.now(UTC).isoformat()}
        return await self._replace(entry.meta.name, meta, entry.sequence) is not None

    async def delete(self, entry: Entry, reason: str) -> bool:
        """Deletes an object unless something was said of it meanwhile; then false.

        Whoever dies on the way leaves what is found and deleted the next time.

        Raises:
            PermissionDeniedError: this is the collector's to do.
        """
        subject = meta_subject(entry.meta.name)
        uploads = {one.nuid for one in await self.candidates(entry.meta.name)}
        # Who says that another object's bytes are this one's must not have them deleted with it.
        for said in await self._entries(f"{_METAS}>", start=self._named_up_to + 1):
            self._names[said.meta.nuid].add(said.meta.name)
            self._named_up_to = said.sequence
        uploads = {nuid for nuid in uploads if self._names[nuid] <= {entry.meta.name}}
        _, last = await self.find(entry.meta.name)
        if entry.sequence != last and await self._says_something(subject, after=entry.sequence):
            return False
        gone = entry.meta.model_dump(include={"name", "nuid"}) | {"bucket": BUCKET, "deleted": True}
        marker = await self._replace(entry.meta.name, gone, last)
        if marker is None:
            return False
        for nuid in sorted(uploads):
            await self.delete_upload(nuid, reason, name=entry.meta.name)
        # Up to the marker: an object of this name that was put meanwhile stays.
        await self._purge(subject, through=marker)
        return True

    async def _says_something(self, subject: str, *, after: int) -> bool:
        return any(entry.sequence > after for entry in await self._entries(subject))

    async def delete_upload(self, nuid: str, reason: str, *, name: str = "") -> None:
        """Deletes the chunks of an upload, and first notes that and why where nobody can take it back.

        Raises:
            PermissionDeniedError: this is the collector's to do.
        """
        note = json.dumps({"upload": nuid, "object": name, "reason": reason}).encode()
        subject = deletion_subject(nuid)
        await self.connection.persist(lambda: self.connection.js.publish(subject, note, stream=DELETION_STREAM))
        await self._purge(f"{_CHUNKS}{nuid}")

    async def _replace(self, name: str, meta: dict[str, Any], replaces: int) -> int | None:
        """Writes a meta message where ``replaces`` is the last of its name; its sequence, or nothing if it is not."""
        body = json.dumps(meta).encode()

        async def attempt() -> PubAck:
            headers = {"Nats-Expected-Last-Subject-Sequence": str(replaces)}
            return await self.connection.js.publish(meta_subject(name), body, headers=headers)

        try:
            return (await self.connection.persist(attempt)).seq
        except APIError as error:
            if error.err_code != WRONG_LAST_SEQUENCE:
                raise
            return None

    def chunks(
        self, meta: Meta, sequence: int, batch: int, *, at_leader: bool = False
    ) -> AsyncGenerator[DirectMessage, None]:
        """The chunk messages of an object from ``sequence`` on, from any replica or slower from the leader."""
        subject = f"{_CHUNKS}{meta.nuid}"
        if at_leader:
            return read_at_leader(self.connection, OBJECT_STREAM, subject, start=sequence)
        return self._stored(subject, sequence, batch)

    async def _purge(self, subject: str, *, through: int | None = None) -> None:
        end = None if through is None else through + 1
        await self.connection.persist(lambda: self.connection.js.purge_stream(OBJECT_STREAM, seq=end, subject=subject))

    async def orphans(self) -> list[tuple[str, datetime]]:
        """The uploads that no object owns, and when their newest chunk was stored."""
        # Chunks first: an upload that ends meanwhile is then among the owned ones.
        uploads = (await stream_state(self.connection, OBJECT_STREAM, f"{_CHUNKS}>")).subjects
        owned = {entry.meta.nuid for entry in await self._entries(f"{_METAS}>")}
        found: list[tuple[str, datetime]] = []
        for subject in uploads:
            nuid = subject.removeprefix(_CHUNKS)
            newest = None if nuid in owned else await self.connection.last_message(OBJECT_STREAM, subject)
            if newest is not None and newest.time is not None:
                found.append((nuid, newest.time))
        return found

    def _stored(self, subject: str, start: int, batch: int) -> AsyncGenerator[DirectMessage, None]:
        return read_stored(self.connection, OBJECT_STREAM, subject, start=start, batch=batch, stall_s=self._stall_s)


def meta_subject(name: str) -> str:
    """Where the meta message of the object called ``name`` stands."""
    return f"{_METAS}{base64.urlsafe_b64encode(name.encode()).decode()}"


def _entry(body: bytes, subject: str, sequence: int, stored_at: datetime) -> Entry | None:
    """The object that a meta message describes; nothing when it was deleted, or cannot be one.

    Chunks come before what is said of them, and nobody says anything of an object under another's name.
    """
    try:
        meta = Meta.model_validate_json(body)
    except ValidationError:
        return None
    possible = meta_subject(meta.name) == subject and meta.first_sequence < sequence
    return Entry(meta, sequence, stored_at) if possible and not meta.deleted else None


async def _acknowledged(future: asyncio.Future[Ack]) -> int:
    async with asyncio.timeout(_ACK_S):
        return (await future).sequence
