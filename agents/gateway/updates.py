"""The bytes of updates as the conversation wants them handled: opened and written in the spool, judged, and stored."""

from __future__ import annotations

import asyncio
import logging

from agents.core.exchange import connections
from agents.core.exchange.effects import Commit
from agents.core.exchange.messages import ProtocolError
from agents.core.exchange.upload_rules import UpdateRefusedError, judge
from agents.gateway.spool import SMALL, Spool, Upload
from bus.client import Bus
from bus.errors import ObjectCorruptError
from bus.process.crash_points import crash_point
from bus.words.values import Ref

log = logging.getLogger(__name__)
MEDIA_TYPE = "application/octet-stream"


class Updates:
    """Each upload under way or being committed has a file here, from ``open`` to ``close``."""

    def __init__(self, bus: Bus, spool: Spool) -> None:
        self._bus = bus
        self._spool = spool
        self._files: dict[connections.Upload, Upload] = {}

    async def open(self, upload: connections.Upload) -> int | None:
        """Where the upload goes on, in bytes; none when the disk does not take it."""
        try:
            file = self._spool.upload(upload.lease, upload.number, upload.progress.size, upload.sha256)
            await file.open()
        except OSError as error:
            log.error("the spool does not take an upload: %s", error, extra=upload.lease.about)
            return None
        crash_point("gateway.upload_begun")
        self._files[upload] = file
        return file.progress.offset

    async def write(self, upload: connections.Upload, offset: int, data: memoryview) -> int | None:
        """How many bytes are there after this chunk; none when the disk did not take it."""
        try:
            following = await self._files[upload].write(offset, data)
        except ProtocolError:
            return None
        crash_point("gateway.chunk_written")
        return following

    def close(self, upload: connections.Upload) -> None:
        """Nothing more is done with it."""
        if (file := self._files.pop(upload, None)) is not None:
            file.close()

    async def check(self, commit: Commit) -> float | UpdateRefusedError:
        """The update's L2 norm, or why it does not count."""
        file = self._files[commit.upload]
        file.close()
        try:
            data = file.bytes()
            if len(data) <= SMALL:
                norm = judge(data, commit.metrics, commit.expected)
            else:
                norm = await asyncio.to_thread(judge, data, commit.metrics, commit.expected)
        except UpdateRefusedError as error:
            return error
        crash_point("gateway.checked")
        return norm

    async def store(self, commit: Commit) -> Ref | UpdateRefusedError:
        """Puts the update into the object store, which hashes it on the way, or says why it does not count."""
        file, objects = self._files[commit.upload], self._bus.objects
        try:
            if file.progress.size <= SMALL:
                ref = await objects.put(file.bytes().tobytes(), media_type=MEDIA_TYPE, sha256=file.sha256)
            else:
                ref = await objects.put_file(file.path, MEDIA_TYPE, sha256=file.sha256)
        except ObjectCorruptError:
            return UpdateRefusedError("digest", "the bytes do not have the digest that was announced")
        crash_point("gateway.object_put")
        return ref
