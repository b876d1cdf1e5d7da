"""One client's conversation with the gateway: takes its messages one by one, and answers through its outbox."""

from __future__ import annotations

import logging
import time

from agents.core.exchange.access import AccessRefusedError, Pace
from agents.core.exchange.leases import Lease
from agents.core.exchange.messages import (
    PROTOCOL_VERSION,
    ErrorMessage,
    Hello,
    Leave,
    Ping,
    Pong,
    ProgressMessage,
    ProtocolError,
    Ready,
    TaskFailed,
    UploadAccepted,
    UploadBegin,
    UploadCommit,
    UploadOffset,
    UploadRejected,
    Welcome,
    parse_chunk,
    parse_client_message,
)
from agents.core.exchange.upload_rules import UpdateRefusedError
from agents.gateway.commits import Committer
from agents.gateway.hub import Hub, where
from agents.gateway.members import Member
from agents.gateway.outbox import Outbox
from agents.gateway.spool import Upload
from agents.words.events import Progress
from bus.process.crash_points import crash_point

log = logging.getLogger(__name__)
PROGRESS_EVERY_S = 0.1
FAILED_DELAY_S = 2.0
_QUIET_CODES = frozenset({"unknown_lease", "unknown_upload"})
"""What an honest client may run into when its lease ends while it speaks; not counted against it."""


class Session:
    """The state of one connection; ``close`` it when the connection is gone."""

    def __init__(self, hub: Hub, committer: Committer, outbox: Outbox, address: str) -> None:
        self._hub = hub
        self._address = address
        self._pace = Pace(hub.settings.messages_per_s)
        self._committer = committer
        self._outbox = outbox
        self._member: Member | None = None
        self._uploads: dict[int, Upload] = {}
        self._errors = 0
        self._progress_at = 0.0

    @property
    def welcomed(self) -> bool:
        """The client has said hello."""
        return self._member is not None

    def delay(self, size: int) -> float:
        """Seconds to wait after a message of this many bytes before the next is read."""
        now = time.monotonic()
        wait_s = self._pace.delay(1, now)
        return wait_s if self._member is None else max(wait_s, self._member.grant.pace.delay(size, now))

    async def receive(self, message: str | bytes) -> None:
        """Takes one frame; whatever is wrong with it goes back as ``error``, and closes the connection at last."""
        try:
            await self._take(message)
        except TimeoutError:
            self._outbox.say(ErrorMessage(code="busy", message="the gateway lags behind the stream; try again later"))
        except ProtocolError as error:
            self._errors += error.code not in _QUIET_CODES
            self._outbox.say(ErrorMessage(code=error.code[:32], message=error.message[:500]))
            if error.fatal or self._errors >= self._hub.settings.max_errors:
                self._outbox.close(1008, error.code)

    async def _take(self, message: str | bytes) -> None:
        if isinstance(message, bytes):
            await self._chunk(message)
            return
        parsed = parse_client_message(message)
        if isinstance(parsed, Hello):
            self._hello(parsed)
            return
        member = self._welcomed()
        match parsed:
            case Ping():
                self._outbox.say(Pong())
            case Ready():
                self._hub.ready(member)
            case ProgressMessage():
                await self._progress(parsed, member)
            case UploadBegin():
                await self._begin(parsed, member)
            case UploadCommit():
                await self._commit(parsed, member)
            case Leave():
                self._hub.dismiss(member)
            case TaskFailed():
                lease = self._lease(parsed.lease, member)
                log.warning("client %s cannot do it: %s", member.name, parsed.reason, extra=where(lease))
                self._drop_uploads(lease)
                self._hub.give_back(lease, delay_s=FAILED_DELAY_S)

    def close(self) -> None:
        """The connection is gone."""
        for number in list(self._uploads):
            self._drop_upload(number)
        if self._member is not None:
            self._hub.leave(self._member)

    def _hello(self, hello: Hello) -> None:
        settings = self._hub.settings
        if self._member is not None:
            raise ProtocolError("twice", "hello comes once")
        if hello.protocol != PROTOCOL_VERSION:
            raise ProtocolError("version", f"this gateway speaks protocol {PROTOCOL_VERSION}", fatal=True)
        try:
            grant = self._hub.access.check(hello.token, "train", self._address)
        except AccessRefusedError as error:
            raise ProtocolError(error.code, error.message, fatal=True) from None
        self._member, resumed = self._hub.join(hello, self._outbox, grant)
        self._outbox.say(
            Welcome(
                heartbeat_s=settings.heartbeat_s,
                lease_s=settings.lease_s,
                chunk_bytes=settings.chunk_bytes,
                resumed=resumed,
            )
        )
        log.info("client %s joined with %s, resumes %d", hello.client, hello.engine, len(resumed))

    def _welcomed(self) -> Member:
        if self._member is None:
            raise ProtocolError("hello", "say hello first", fatal=True)
        return self._member

    def _lease(self, name: str, member: Member) -> Lease:
        lease = self._hub.leases.get(name, member.name)
        if lease is None or lease.committing:
            raise ProtocolError("unknown_lease", "this lease is over or was never this client's")
        return lease

    async def _progress(self, message: ProgressMessage, member: Member) -> None:
        lease, now = self._lease(message.lease, member), time.monotonic()
        if now - self._progress_at < PROGRESS_EVERY_S and message.phase == "train":
            return
        self._progress_at = now
        task = lease.record.task
        about = {"run": task.run, "round": task.round, "user": task.user, "client": member.name}
        await self._hub.bus.say(Progress.model_validate(message.model_dump(exclude={"type", "lease"}) | about))

    async def _begin(self, begin: UploadBegin, member: Member) -> None:
        if await self._answered_late(begin, member):
            return
        lease = self._hub.leases.get(begin.lease, member.name)
        if lease is None:
            raise ProtocolError("unknown_lease", "this lease is over or was never this client's")
        lease.upload = begin.upload
        if lease.committing:
            # A client that came back while its update is checked: the answer is on its way.
            return
        if begin.upload in self._uploads:
            raise ProtocolError("upload_number", "an upload of this number is under way")
        self._drop_uploads(lease)
        try:
            await self._committer.check_announced(lease, begin.size)
        except UpdateRefusedError as error:
            await self._committer.reject(lease, begin.upload, error)
            return
        if self._hub.spooled_bytes + begin.size > self._hub.settings.max_spool_bytes:
            raise ProtocolError("spool", "the gateway takes no more uploads now; try again later")
        await self._open(lease, begin)

    async def _open(self, lease: Lease, begin: UploadBegin) -> None:
        try:
            upload = self._hub.spool.upload(lease, begin.upload, begin.size, begin.sha256)
            await upload.open()
        except OSError as error:
            log.error("the spool does not take an upload: %s", error, extra=where(lease))
            raise ProtocolError("spool", "the gateway cannot keep the upload now; try again later") from None
        crash_point("gateway.upload_begun")
        self._uploads[begin.upload] = upload
        self._hub.spooled_bytes += begin.size
        self._outbox.say(UploadOffset(upload=begin.upload, offset=upload.progress.offset))

    async def _answered_late(self, message: UploadBegin | UploadCommit, member: Member) -> bool:
        """Answers for a lease that ended before; a stale update is rejected on the bus too."""
        found = self._hub.leases.outcome(message.lease, member.name)
        if found is None:
            return False
        outcome, record = found
        if outcome == "accepted":
            self._outbox.say(UploadAccepted(lease=message.lease, upload=message.upload))
        else:
            reason = "the task was over"
            await self._committer.publish_rejection(record, UpdateRefusedError("stale", reason))
            self._outbox.say(UploadRejected(lease=message.lease, upload=message.upload, code="stale", reason=reason))
        return True

    async def _chunk(self, frame: bytes) -> None:
        self._welcomed()
        number, offset, data = parse_chunk(frame)
        upload = self._uploads.get(number)
        if upload is None:
            raise ProtocolError("unknown_upload", "no upload of this number is under way")
        following = await upload.write(offset, data)
        crash_point("gateway.chunk_written")
        self._outbox.say(UploadOffset(upload=number, offset=following))

    async def _commit(self, commit: UploadCommit, member: Member) -> None:
        upload = self._uploads.get(commit.upload)
        if upload is None or upload.lease.id != commit.lease:
            raise ProtocolError("unknown_upload", "no upload of this number is under way for this lease")
        if not upload.progress.complete:
            raise ProtocolError("incomplete", f"{upload.progress.offset} of {upload.progress.size} bytes are there")
        self._drop_upload(commit.upload)
        if not await self._answered_late(commit, member):
            self._lease(commit.lease, member)
            crash_point("gateway.committed")
            self._committer.start(upload, commit.metrics, member.hello.engine)

    def _drop_uploads(self, lease: Lease) -> None:
        for number, upload in list(self._uploads.items()):
            if upload.lease is lease:
                self._drop_upload(number)

    def _drop_upload(self, number: int) -> None:
        upload = self._uploads.pop(number)
        self._hub.spooled_bytes -= upload.progress.size
        upload.close()
