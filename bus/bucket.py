"""The stock JetStream Object Store format: chunks under a random subject each upload, and a meta message by name."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator
from datetime import UTC, datetime

import nats.errors
from nats.js.api import PubAck
from nats.js.errors import APIError
from pydantic import BaseModel, ConfigDict, ValidationError

from bus.connection import Connection, cancellable
from bus.dead_letters import WRONG_LAST_SEQUENCE
from bus.direct import DirectMessage, read_stored, subjects_of
from bus.pipeline import Ack, Pipeline
from bus.topology import BUCKET, OBJECT_STREAM
from bus.values import Ref

CHUNK = 512 * 1024
MEDIA_TYPE, FIRST_SEQUENCE = "media-type", "first-sequence"
_CHUNKS, _METAS = f"$O.{BUCKET}.C.", f"$O.{BUCKET}.M."
_WINDOW = 8
_ACK_S = 10.0


class Options(BaseModel):
    """Stock default of the chunk size."""

    max_chunk_size: int = 128 * 1024


class Meta(BaseModel):
    """The meta message of an object, as far as fedbus reads it; ``sequence`` is its place in the stream."""

    model_config = ConfigDict(extra="ignore")

    name: str
    nuid: str
    size: int = 0
    chunks: int = 0
    deleted: bool = False
    headers: dict[str, list[str]] | None = None
    options: Options = Options()
    sequence: int = 0

    def header(self, key: str, default: str) -> str:
        """The first value of a header."""
        return ((self.headers or {}).get(key) or [default])[0]


class Bucket:
    """Reads and writes the parts of objects."""

    def __init__(self, connection: Connection, pipeline: Pipeline, *, stall_s: float) -> None:
        self.connection = connection
        self._pipeline = pipeline
        self._stall_s = stall_s

    async def find(self, name: str) -> tuple[Meta | None, int]:
        """The meta message of an object that is there, and the sequence of whatever stands in its place (or 0)."""
        message = await self.connection.last_message(OBJECT_STREAM, meta_subject(name))
        if message is None:
            return None, 0
        sequence = message.seq or 0
        try:
            meta = Meta.model_validate_json(message.data or b"")
        except ValidationError:
            return None, sequence
        return (None if meta.deleted else meta), sequence

    async def is_complete(self, meta: Meta) -> bool:
        """Whether all chunks are there."""
        subject = f"{_CHUNKS}{meta.nuid}"
        return (await subjects_of(self.connection, OBJECT_STREAM, subject)).get(subject, 0) == meta.chunks

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
                # Whoever purges these chunks now must not do so before the broker has stored them.
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
        body = json.dumps(meta).encode()

        async def attempt() -> PubAck:
            headers = {"Nats-Rollup": "sub", "Nats-Expected-Last-Subject-Sequence": str(replaces)}
            return await self.connection.js.publish(meta_subject(ref.name), body, headers=headers)

        try:
            await self.connection.persist(attempt)
        except APIError as error:
            if error.err_code != WRONG_LAST_SEQUENCE:
                raise
            there, _ = await self.find(ref.name)
            return there is not None and there.nuid == nuid
        return True

    def chunks(self, meta: Meta, sequence: int, batch: int) -> AsyncGenerator[DirectMessage, None]:
        """The chunk messages of an object from ``sequence`` on."""
        return self._stored(f"{_CHUNKS}{meta.nuid}", sequence, batch)

    async def purge(self, nuid: str) -> None:
        """Deletes the chunks of an upload if the broker is there; otherwise they wait for ``orphans``."""
        if self.connection.is_up:
            with contextlib.suppress(nats.errors.Error, TimeoutError):
                await cancellable(self.connection.js.purge_stream(OBJECT_STREAM, subject=f"{_CHUNKS}{nuid}"))

    async def orphans(self) -> list[tuple[str, datetime]]:
        """The uploads that no meta message names, and when their newest chunk was stored."""
        # Chunks first: an upload that ends meanwhile is then among the owned ones.
        uploads = await subjects_of(self.connection, OBJECT_STREAM, f"{_CHUNKS}>")
        owned: set[str] = set()
        async with contextlib.aclosing(self._stored(f"{_METAS}>", 1, 256)) as metas:
            async for message in metas:
                with contextlib.suppress(ValidationError):
                    owned.add(Meta.model_validate_json(message.data).nuid)
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


async def _acknowledged(future: asyncio.Future[Ack]) -> int:
    async with asyncio.timeout(_ACK_S):
        return (await future).sequence
