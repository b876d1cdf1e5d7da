"""The bytes of updates on their way to the spool: which are under way, and that each file has one writer."""

from __future__ import annotations

from agents.core.exchange.connections import Connection, Upload
from agents.core.exchange.effects import CloseUpload, Effects, OpenUpload, WriteChunk
from agents.core.exchange.leases import Lease
from agents.core.exchange.limits import Limits
from agents.core.exchange.messages import ProtocolError, UploadBegin, UploadCommit, UploadOffset
from agents.core.exchange.upload_rules import Progression


class Uploads:
    """All uploads under way; ``spooled_bytes`` is what they announced together.

    All bytes of a lease go to one file, and the spool works on it in a thread: an upload that begins while an older one
    of the same lease, on a connection that was lost, is still being written waits for that.
    """

    def __init__(self, limits: Limits, effects: Effects) -> None:
        self._limits = limits
        self._effects = effects
        self._holders: dict[str, Upload] = {}
        """By lease, whose file is open."""
        self._next: dict[str, Upload] = {}
        self.spooled_bytes = 0

    def begin(self, connection: Connection, lease: Lease, begin: UploadBegin) -> None:
        """Takes an upload up, in place of any other of the lease; ``opened`` follows.

        Raises:
            ProtocolError: ``spool`` when there are too many bytes under way.
        """
        if self.spooled_bytes + begin.size > self._limits.max_spool_bytes:
            raise ProtocolError("spool", "the gateway takes no more uploads now; try again later")
        upload = Upload(connection, lease, begin.upload, begin.sha256, Progression(begin.size, 0), begin.size)
        connection.uploads[begin.upload] = upload
        connection.busy = True
        self.spooled_bytes += begin.size
        if lease.id in self._holders:
            self._next[lease.id] = upload
        else:
            self._open(upload)

    def _open(self, upload: Upload) -> None:
        self._holders[upload.lease.id] = upload
        upload.at_work = True
        self._effects.add(OpenUpload(upload))

    def opened(self, upload: Upload, offset: int | None) -> None:
        """The spool has the upload's bytes up to ``offset``, or none: it cannot keep them.

        Raises:
            ProtocolError: ``spool``.
        """
        self._rest(upload)
        if offset is None and not upload.void:
            self.drop(upload)
            raise ProtocolError("spool", "the gateway cannot keep the upload now; try again later")
        upload.progress.offset = offset or 0
        self._acknowledge(upload)

    def chunk(self, connection: Connection, number: int, offset: int, data: memoryview) -> None:
        """Takes one chunk; ``written`` follows, unless its lease is over.

        Raises:
            ProtocolError: ``unknown_upload``, or the chunk does not belong there.
        """
        upload = connection.uploads.get(number)
        if upload is None:
            raise ProtocolError("unknown_upload", "no upload of this number is under way")
        upload.progress.check(offset, len(data))
        if upload.void:
            # Its client has been told that the task is over, but waits for the answers to what it sent before.
            upload.progress.offset += len(data)
            self._acknowledge(upload)
            return
        upload.at_work = connection.busy = True
        self._effects.add(WriteChunk(upload, offset, data))

    def written(self, upload: Upload, offset: int | None) -> None:
        """The spool has the upload's bytes up to ``offset``, or none: the last chunk is lost.

        Raises:
            ProtocolError: ``spool``.
        """
        self._rest(upload)
        if offset is None:
            raise ProtocolError("spool", "the gateway cannot keep the upload now; try again later")
        upload.progress.offset = offset
        self._acknowledge(upload)

    def take(self, connection: Connection, commit: UploadCommit) -> Upload:
        """The complete upload, which stays in the spool until its lease ends.

        Raises:
            ProtocolError: ``unknown_upload`` or ``incomplete``.
        """
        upload = connection.uploads.get(commit.upload)
        if upload is None or upload.lease.id != commit.lease:
            raise ProtocolError("unknown_upload", "no upload of this number is under way for this lease")
        if not upload.void and not upload.progress.complete:
            raise ProtocolError("incomplete", f"{upload.progress.offset} of {upload.progress.size} bytes are there")
        del connection.uploads[commit.upload]
        self._discount(upload)
        return upload

    def drop_all(self, connection: Connection, lease: Lease | None = None) -> None:
        """Nothing more comes for any upload of this connection, or for those of a lease and those that are void."""
        for upload in list(connection.uploads.values()):
            if lease is None or upload.void or upload.lease is lease:
                self.drop(upload)

    def drop(self, upload: Upload) -> None:
        """Nothing more comes for this upload."""
        upload.connection.uploads.pop(upload.number, None)
        self._void(upload)

    def end(self, lease: Lease) -> None:
        """The lease is over: its upload has no use any more."""
        for upload in (self._next.get(lease.id), self._holders.get(lease.id)):
            if upload is not None:
                self._void(upload)

    def _void(self, upload: Upload) -> None:
        if upload.void:
            return
        upload.void = True
        self._discount(upload)
        if self._next.get(upload.lease.id) is upload:
            del self._next[upload.lease.id]
            self._acknowledge(upload)
        elif not upload.at_work:
            self._close(upload)

    def _rest(self, upload: Upload) -> None:
        upload.at_work = upload.connection.busy = False
        if upload.void:
            self._close(upload)

    def _close(self, upload: Upload) -> None:
        self._effects.add(CloseUpload(upload))
        del self._holders[upload.lease.id]
        if (following := self._next.pop(upload.lease.id, None)) is not None:
            self._open(following)

    def _discount(self, upload: Upload) -> None:
        self.spooled_bytes -= upload.counted
        upload.counted = 0

    def _acknowledge(self, upload: Upload) -> None:
        upload.connection.busy = False
        self._effects.say(upload.connection, UploadOffset(upload=upload.number, offset=upload.progress.offset))
