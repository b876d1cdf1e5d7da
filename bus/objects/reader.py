"""Reads objects, whole and verified, from any replica and where that is wanting from the stream's leader."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import mmap
import os
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import IO, BinaryIO, TypeVar
from uuid import uuid4

from bus.broker.topology import BUCKET
from bus.errors import ObjectCorruptError, ObjectMissingError, ObjectTimeoutError
from bus.objects.bucket import MEDIA_TYPE, Bucket, Claim, Meta
from bus.words.values import Ref

SMALL = 4 << 20
DEFAULT_TYPE = "application/octet-stream"
_BATCH = 16
T = TypeVar("T")


class ObjectReader:
    """The reading half of ``ObjectStore``."""

    def __init__(self, bucket: Bucket) -> None:
        self.bucket = bucket
        self._doubted: set[Claim] = set()
        """Uploads that some replica did not give whole: its disk may have lost what the leader has."""
        self._damaged: set[Claim] = set()
        """Uploads that were not what somebody said of them when they were read from the leader."""

    async def get(self, ref: Ref | str) -> bytes:
        """The bytes of an object, given by reference or SHA-256, verified.

        Raises:
            ObjectMissingError: it is not there.
            ObjectCorruptError: what is there has another size or digest.
            ObjectTimeoutError: its chunks stopped arriving.
        """

        async def whole() -> bytes:
            async with contextlib.aclosing(self.stream(ref)) as chunks:
                return b"".join([chunk async for chunk in chunks])

        return await self._from_whoever_has_it(ref, whole)

    async def check(self, ref: Ref | str) -> None:
        """Reads an object and hands nothing out.

        Raises:
            ObjectMissingError, ObjectCorruptError, ObjectTimeoutError: as ``get``.
        """

        async def through() -> None:
            async with contextlib.aclosing(self.stream(ref)) as chunks:
                async for _ in chunks:
                    pass

        await self._from_whoever_has_it(ref, through)

    async def _from_whoever_has_it(self, ref: Ref | str, read: Callable[[], Awaitable[T]]) -> T:
        """What ``read`` returns; it is called again while another upload, or the leader, may have the object."""
        while True:
            known = len(self._doubted), len(self._damaged)
            try:
                return await read()
            except (ObjectCorruptError, ObjectMissingError):
                if (len(self._doubted), len(self._damaged)) == known or not await self._another(ref):
                    raise

    async def stream(self, ref: Ref | str, *, start: int = 0, end: int | None = None) -> AsyncGenerator[bytes, None]:
        """The bytes from ``start`` up to ``end`` in chunks, in constant memory; a range begins at its first chunk.

        Where several things were said of an object, what turned out not to be true is not tried again; an upload that
        a replica did not give whole comes from the stream's leader the next time, which is at once as long as no byte
        was handed out.
        The whole object is verified, and its last chunk is held back until it is; a range is checked for gaps only.

        Raises:
            ObjectMissingError, ObjectCorruptError, ObjectTimeoutError: as ``get``.
            ValueError: the range does not lie inside the object.
        """
        begun = False
        while True:
            known = len(self._doubted), len(self._damaged)
            try:
                async with contextlib.aclosing(self._stream(ref, start, end)) as parts:
                    async for part in parts:
                        begun = True
                        yield part
                return
            except (ObjectCorruptError, ObjectMissingError):
                # What was handed out cannot be taken back.
                if begun or (len(self._doubted), len(self._damaged)) == known or not await self._another(ref):
                    raise

    async def _stream(self, ref: Ref | str, start: int, end: int | None) -> AsyncGenerator[bytes, None]:
        meta, ref = await self._resolve(ref)
        stop = ref.size if end is None else end
        if not 0 <= start <= stop <= ref.size:
            raise ValueError(f"bytes {start} to {stop} of an object of {ref.size}")
        check = hashlib.sha256() if start == 0 and stop == ref.size else None
        if start == stop:
            if check is not None and check.hexdigest() != ref.sha256:
                with self._noting(meta):
                    raise _corrupt(ref)
            return
        with self._noting(meta):
            async with contextlib.aclosing(self._chunks(meta, ref, start, hashed=check is not None)) as chunks:
                async for offset, chunk in chunks:
                    last = offset + len(chunk) >= stop
                    if check is not None:
                        check.update(chunk)
                        if last and check.hexdigest() != ref.sha256:
                            raise _corrupt(ref)
                    yield chunk[max(0, start - offset) : stop - offset]
                    if last:
                        return
            raise _corrupt(ref)

    async def fetch_to(self, ref: Ref | str, path: Path) -> None:
        """Writes a verified object to ``path``, which appears complete or not at all."""
        temporary = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
        try:
            with _create(temporary) as file:
                await self._write(ref, file)
                await asyncio.to_thread(os.fsync, file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    @contextlib.asynccontextmanager
    async def local(self, ref: Ref) -> AsyncIterator[bytes | memoryview]:
        """A verified object's bytes, to be read as often as one likes, in constant memory.

        A small object is in memory. Another is a mapped file without a name: it is gone when nobody uses the bytes any
        more, whoever dies, and need not get as far as the disk.

        Raises:
            ObjectMissingError, ObjectCorruptError, ObjectTimeoutError: as ``get``.
        """
        if ref.size <= SMALL:
            yield await self.get(ref)
            return
        with tempfile.TemporaryFile(prefix="fedbus-object-") as file:
            await self._write(ref, file)
            yield memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))

    async def info(self, name: str) -> Ref | None:
        """The reference of the object called ``sha256-<hex>``, or nothing when it is not there.

        Where one thing was said of it, that is taken; where several were, the bytes are read to know which is true.

        Raises:
            ObjectTimeoutError: that took too long.
        """
        _, last = await self.bucket.find(name)
        said = await self.bucket.candidates(name) if last else []
        by_claim = {meta.claim: meta for meta in reversed(said)}
        for claim in [] if len(by_claim) == 1 else reversed(by_claim):
            ref = ref_of(by_claim[claim])
            with contextlib.suppress(ObjectMissingError, ObjectCorruptError):
                await self.check(ref)
                return ref
        return ref_of(said[0]) if said else None

    async def _write(self, ref: Ref | str, file: IO[bytes]) -> None:
        """Writes an object to an empty file and hashes it on the way, both in a thread."""
        await self._from_whoever_has_it(ref, lambda: self._write_once(ref, file))

    async def _write_once(self, ref: Ref | str, file: IO[bytes]) -> None:
        file.seek(0)
        file.truncate()
        meta, ref = await self._resolve(ref)
        check, end = hashlib.sha256(), 0

        def take(chunk: bytes) -> None:
            check.update(chunk)
            file.write(chunk)

        with self._noting(meta):
            if ref.size:
                async with contextlib.aclosing(self._chunks(meta, ref, 0, hashed=True)) as chunks:
                    async for offset, chunk in chunks:
                        await asyncio.to_thread(take, chunk)
                        end = offset + len(chunk)
            if (check.hexdigest(), end) != (ref.sha256, ref.size):
                raise _corrupt(ref)
        await asyncio.to_thread(file.flush)

    @contextlib.contextmanager
    def _noting(self, meta: Meta) -> Iterator[None]:
        """Remembers an upload that is not what its meta message says: on some replica, or at the leader."""
        try:
            yield
        except (ObjectCorruptError, ObjectMissingError):
            (self._damaged if meta.claim in self._doubted else self._doubted).add(meta.claim)
            raise

    async def _another(self, ref: Ref | str) -> bool:
        """Whether something else was said of an object, which nobody here has found untrue."""
        name = f"sha256-{ref}" if isinstance(ref, str) else ref.name
        return any(one.claim not in self._damaged for one in await self.bucket.candidates(name))

    async def _resolve(self, ref: Ref | str) -> tuple[Meta, Ref]:
        name = f"sha256-{ref}" if isinstance(ref, str) else ref.name
        meta = await self._said_of(name, ref) if isinstance(ref, str) or ref.bucket == BUCKET else None
        if meta is None:
            raise ObjectMissingError(f"object {name} is not in the store", hint="was it put on this broker?")
        known = named(ref, meta.size, DEFAULT_TYPE) if isinstance(ref, str) else ref
        if meta.size != known.size:
            raise ObjectCorruptError(f"object {name} has {meta.size} bytes, its reference says {known.size}")
        return meta, known

    async def _said_of(self, name: str, ref: Ref | str) -> Meta | None:
        """The newest thing said of an object that may be true, or the newest when none may be."""

        def may_be_true(meta: Meta) -> bool:
            return meta.claim not in self._damaged and (isinstance(ref, str) or meta.size == ref.size)

        entry, last = await self.bucket.find(name)
        if entry is not None and may_be_true(entry.meta):
            return entry.meta
        said = await self.bucket.candidates(name) if last else []
        return next(filter(may_be_true, said), said[0] if said else None)

    async def _chunks(
        self, meta: Meta, ref: Ref, start: int, *, hashed: bool
    ) -> AsyncGenerator[tuple[int, bytes], None]:
        """Each chunk with its offset, from the one that holds byte ``start``; without gaps if it is not ``hashed``."""
        size = meta.options.max_chunk_size
        skipped = start // size
        index, sequence, in_a_row = await self._beginning(meta, ref, skipped, hashed=hashed)
        found = False
        # What other messages lie between is known by its digest alone to be all there, or from the leader.
        at_leader = meta.claim in self._doubted or not (hashed or in_a_row)
        async with contextlib.aclosing(self.bucket.chunks(meta, sequence, _BATCH, at_leader=at_leader)) as messages:
            try:
                async for message in messages:
                    # Counted, and not told from what the broker says is left: a replica that is behind does not know.
                    if index * size + len(message.data) > ref.size or (in_a_row and message.sequence != sequence):
                        raise _corrupt(ref)
                    found = True
                    if index >= skipped:
                        yield index * size, message.data
                    index, sequence = index + 1, sequence + 1
                    if index == meta.chunks:
                        break
            except TimeoutError:
                raise ObjectTimeoutError(
                    f"chunks of {ref.name} stopped arriving", hint="try again; see whether the broker is overloaded"
                ) from None
        if not found:
            raise ObjectMissingError(f"the chunks of {ref.name} are gone", hint="put the object again")

    async def _beginning(self, meta: Meta, ref: Ref, skipped: int, *, hashed: bool) -> tuple[int, int, bool]:
        """From which chunk to read an object whose first ``skipped`` are not wanted, at which sequence to look for it,
        and whether the chunks from there on follow one another without any other message between.
        """
        first = meta.first_sequence
        if hashed:
            return 0, first or 1, False
        # A part is not hashed: that no chunk is missing before it must be known from the leader.
        count, last = await self.bucket.extent(meta)
        if count != meta.chunks:
            raise _corrupt(ref)
        if first and last - first + 1 == count:
            return skipped, first + skipped, True
        return 0, first or 1, False


def _corrupt(ref: Ref) -> ObjectCorruptError:
    return ObjectCorruptError(f"the bytes of {ref.name} are damaged", hint="put the object again")


def ref_of(meta: Meta) -> Ref:
    """The reference of an object called ``sha256-<hex>``."""
    return named(meta.name.removeprefix("sha256-"), meta.size, meta.header(MEDIA_TYPE, DEFAULT_TYPE))


def named(digest: str, size: int, media_type: str) -> Ref:
    """The reference of an object with this SHA-256."""
    return Ref(name=f"sha256-{digest}", size=size, sha256=digest, media_type=media_type)


# In the calling thread: a file that another thread hands to a cancelled caller would stay open.
def _create(path: Path) -> BinaryIO:
    return path.open("xb")
