"""Immutable objects named by their SHA-256, in the stock Object Store format but read several times faster."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
from collections.abc import AsyncIterator, Callable
from io import BufferedReader
from pathlib import Path

import nats.errors
from nats.js.errors import APIError
from nats.nuid import NUID

from bus.broker.answers import is_outage
from bus.broker.connection import Connection
from bus.broker.pipelining import Pipeline
from bus.errors import ObjectCorruptError, ObjectMissingError, ObjectTimeoutError
from bus.objects.bucket import CHUNK, Bucket
from bus.objects.reader import DEFAULT_TYPE, ObjectReader, named
from bus.words.subjects import upload_name
from bus.words.values import Ref

STALL_S = 10.0
FRESH_S = 300.0
_FIRST_PAUSE_S, _LAST_PAUSE_S = 0.2, 2.0
Chunks = Callable[[], AsyncIterator[bytes]]
log = logging.getLogger(__name__)


class ObjectStore(ObjectReader):
    """The bucket ``objects``.

    Args:
        stall_s: how long a reader waits for the next chunk while the broker is there.
        fresh_s: an object that is put again and older than this becomes new, so that it is not collected before the
            event that is going to name it is there.
    """

    def __init__(
        self, connection: Connection, pipeline: Pipeline, *, stall_s: float = STALL_S, fresh_s: float = FRESH_S
    ) -> None:
        super().__init__(Bucket(connection, pipeline, stall_s=stall_s))
        self._fresh_s = fresh_s
        self._nuid = NUID()

    async def put(self, data: bytes | memoryview, *, media_type: str = DEFAULT_TYPE, sha256: str | None = None) -> Ref:
        """Stores ``data`` unless it is there, and returns its reference; waits out broker outages and a full disk.

        Args:
            sha256: what somebody says the digest is.

        Raises:
            ObjectCorruptError: it is another one; nothing was stored.
        """
        view = memoryview(data).cast("B")
        ref = named(await asyncio.to_thread(_sha256, view), len(view), media_type)
        if sha256 not in (None, ref.sha256):
            raise _other(sha256)

        async def chunks() -> AsyncIterator[bytes]:
            for start in range(0, len(view), CHUNK):
                yield bytes(view[start : start + CHUNK])

        await self._put(ref, chunks)
        return ref

    async def put_file(self, path: Path, media_type: str = DEFAULT_TYPE, *, sha256: str | None = None) -> Ref:
        """Stores the bytes of a file, which must not change meanwhile, in constant memory.

        They are hashed first, because nothing takes back what was sent in vain until it is collected, and again while
        they are sent: they become an object only under their digest.

        Args:
            sha256: what somebody says the digest is.

        Raises:
            ObjectCorruptError: the bytes have another digest, or changed while they were read; no object was stored.
        """
        with _open(path) as file:
            digest = await asyncio.to_thread(_digest, file)
            if sha256 not in (None, digest):
                raise _other(sha256)
            ref = named(digest, os.fstat(file.fileno()).st_size, media_type)

            async def chunks() -> AsyncIterator[bytes]:
                file.seek(0)
                check = hashlib.sha256()
                while chunk := await asyncio.to_thread(_read, file, check):
                    yield chunk
                if (check.hexdigest(), file.tell()) != (digest, ref.size):
                    raise _other(digest)

            await self._put(ref, chunks)
        return ref

    async def collect_orphans(self, older_than_s: float, *, dry_run: bool = False) -> int:
        """Deletes chunks that belong to no object and are older than this; returns how many uploads they were of.

        Orphans come of uploads that were killed. Choose an age well above the longest pause of an upload.
        """
        now = await self.bucket.now()
        old = [nuid for nuid, at in await self.bucket.orphans() if (now - at).total_seconds() >= older_than_s]
        for nuid in [] if dry_run else old:
            await self.bucket.delete_upload(nuid, "an upload that was never finished")
        return len(old)

    async def _put(self, ref: Ref, chunks: Chunks) -> None:
        pause = _FIRST_PAUSE_S
        while True:
            there, replaces = await self.bucket.find(ref.name)
            if there is not None:
                complete, age = await self.bucket.inspect(there)
                complete = complete and there.meta.size == ref.size and there.meta.claim not in self._damaged
                complete = complete and await self._is_sound(ref)
                if complete and (age < self._fresh_s or await self.bucket.touch(there)):
                    return
                if complete:
                    # Somebody touched, replaced or deleted it at this moment.
                    continue
            # One that lost chunks, or whose bytes were damaged on the disk, is put again: that heals it. What is sent
            # in vain waits for ``collect_orphans``.
            nuid = upload_name(self.bucket.connection.user, self._nuid.next().decode())
            try:
                first, count = await self.bucket.send(nuid, chunks())
                if await self.bucket.write_meta(ref, nuid, first=first, chunks=count, replaces=replaces):
                    return
            except (nats.errors.Error, TimeoutError) as error:
                # A broker without room answers that its service is unavailable.
                if isinstance(error, APIError) and not is_outage(error):
                    raise
                log.warning("upload of %s starts again: %s", ref.name, str(error) or "no answer")
                await asyncio.sleep(pause)
                pause = min(_LAST_PAUSE_S, 2 * pause)

    async def _is_sound(self, ref: Ref) -> bool:
        """Whether an object that is there can be read: the broker counts chunks that its disk has lost."""
        try:
            await self.check(ref)
        except (ObjectMissingError, ObjectCorruptError):
            return False
        except ObjectTimeoutError:
            return True
        return True


def _other(digest: str | None) -> ObjectCorruptError:
    return ObjectCorruptError(f"the bytes do not have the digest {digest}", hint="do not change a file while it is put")


def _sha256(data: memoryview) -> str:
    return hashlib.sha256(data).hexdigest()


def _digest(file: BufferedReader) -> str:
    file.seek(0)
    return hashlib.file_digest(file, "sha256").hexdigest()


def _read(file: BufferedReader, check: hashlib._Hash) -> bytes:
    chunk = file.read(CHUNK)
    check.update(chunk)
    return chunk


# In the calling thread: a file that another thread hands to a cancelled caller would stay open.
def _open(path: Path) -> BufferedReader:
    return path.open("rb")
