"""The gateway's disk: leases and the bytes of unfinished uploads, so that both outlive its process."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from agents.core.exchange.leases import Lease, LeaseRecord
from agents.core.exchange.messages import ProtocolError
from agents.core.exchange.upload_rules import Progression
from bus.process.files import remove_half_written, write_atomically
from bus.words.problems import what_is_wrong

log = logging.getLogger(__name__)
SMALL = 1 << 20
_INLINE = 1 << 16
_LEASE = "lease.json"


class Upload:
    """The bytes of one update on their way to a file; writes come one at a time.

    They are not hashed here: whoever puts the file in the store gives it the announced digest to check.

    Attributes:
        number: the client's number for it.
        sha256: the digest that the client announced.
    """

    def __init__(self, spool: Spool, lease: Lease, number: int, size: int, sha256: str) -> None:
        self._spool = spool
        self.lease = lease
        self.number = number
        self.sha256 = sha256
        self.path = spool.directory / lease.id / sha256
        self.progress = Progression(size, 0)
        self._file: BinaryIO | None = None

    async def open(self) -> None:
        """Goes on where an earlier connection or process stopped."""
        # Opened here and not in the thread: whoever cancels this must find it closed.
        self._file = os.fdopen(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600), "r+b", buffering=0)
        try:
            there = os.fstat(self._file.fileno()).st_size
            if there > self.progress.size:
                self._file.truncate(there := 0)
            self.progress.offset = there
        except BaseException:
            self.close()
            raise

    async def write(self, offset: int, chunk: memoryview) -> int:
        """Writes one chunk and returns the offset of the next.

        Raises:
            ProtocolError: the chunk does not belong here, or ``spool`` when the disk does not take it.
        """
        self.progress.check(offset, len(chunk))
        try:
            if len(chunk) <= _INLINE:
                self._append(chunk)
            else:
                await asyncio.to_thread(self._append, chunk)
        except OSError as error:
            log.error("the spool takes no more: %s", error)
            raise ProtocolError("spool", "the gateway cannot keep the upload now; try again later") from None
        self.progress.offset += len(chunk)
        self._spool.received_bytes += len(chunk)
        return self.progress.offset

    def _append(self, chunk: memoryview) -> None:
        assert self._file is not None
        self._file.seek(self.progress.offset)
        left = chunk
        while left:
            left = left[self._file.write(left) :]

    def close(self) -> None:
        """Keeps what is there for a later connection."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def bytes(self) -> NDArray[np.uint8]:
        """The bytes: a mapping of the file, so that a large update takes no memory."""
        if self.progress.size == 0:
            return np.zeros(0, np.uint8)
        if self.progress.size <= SMALL:
            return np.fromfile(self.path, np.uint8)
        return np.memmap(self.path, np.uint8, "r")


class Spool:
    """One directory, owned by one gateway, with a folder for each lease.

    ``received_bytes`` counts what uploads wrote since this process began.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.received_bytes = 0
        directory.mkdir(parents=True, exist_ok=True)

    def keep(self, lease: Lease) -> None:
        """Remembers a lease."""
        folder = self.directory / lease.id
        folder.mkdir(exist_ok=True)
        write_atomically(folder / _LEASE, lease.record.model_dump_json().encode(), durable=False)

    def upload(self, lease: Lease, number: int, size: int, sha256: str) -> Upload:
        """The upload of these bytes under a lease; what came under another digest is dropped."""
        for other in (self.directory / lease.id).iterdir():
            if other.name not in (_LEASE, sha256):
                other.unlink()
        return Upload(self, lease, number, size, sha256)

    def drop(self, lease: Lease) -> None:
        """Forgets a lease and its bytes."""
        shutil.rmtree(self.directory / lease.id, ignore_errors=True)

    def load(self) -> list[LeaseRecord]:
        """The leases that an earlier process left; a folder that holds none is removed."""
        found = []
        remove_half_written(self.directory)
        for folder in sorted(path for path in self.directory.iterdir() if path.is_dir()):
            try:
                record = LeaseRecord.model_validate_json((folder / _LEASE).read_bytes())
            except (ValidationError, OSError) as error:
                why = what_is_wrong(error) if isinstance(error, ValidationError) else str(error)
                log.warning("%s holds no lease: %s", folder.name, why)
                shutil.rmtree(folder, ignore_errors=True)
                continue
            remove_half_written(folder)
            found.append(record)
        return found
