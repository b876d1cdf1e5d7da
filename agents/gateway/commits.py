"""From a complete upload to a fact: checks an update, stores it, and says that it was submitted or rejected."""

from __future__ import annotations

import asyncio
import logging

from agents.core.exchange.leases import Lease, LeaseRecord
from agents.core.exchange.messages import UploadAccepted, UploadRejected
from agents.core.exchange.upload_rules import Expected, UpdateRefusedError, check_metrics, check_size, check_update
from agents.gateway.hub import Hub, where
from agents.gateway.spool import SMALL, Upload
from agents.words.events import UpdateMetrics, UpdateRejected, UpdateSubmitted
from bus.errors import ConflictingEventError, ObjectCorruptError
from bus.process.crash_points import crash_point

log = logging.getLogger(__name__)
MEDIA_TYPE = "application/octet-stream"
PARALLEL = 8
SHUT_OUT = "too many of this client's updates were rejected"


class Committer:
    """Takes complete uploads; each ends with an answer to whatever connection the client has by then."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._parallel = asyncio.Semaphore(PARALLEL)

    def start(self, upload: Upload, metrics: UpdateMetrics, engine: str) -> None:
        """Checks and publishes the update beside everything else; the lease is out of reach until that is done."""
        upload.lease.committing = True
        self._hub.group.create_task(self._commit(upload, metrics, engine))

    async def expected(self, record: LeaseRecord) -> Expected:
        """What the task's update has to look like.

        Raises:
            UpdateRefusedError: ``unknown_task`` when the round was never planned.
        """
        # The assignment may be here before the plan that came before it has been read.
        await self._hub.facts.reached(record.sequence)
        expected = self._hub.facts.expected(record.task)
        if expected is None:
            raise UpdateRefusedError("unknown_task", "no such round was planned")
        return expected

    async def check_announced(self, lease: Lease, size: int) -> None:
        """Sees to it that an upload of this size may begin under the lease.

        Raises:
            UpdateRefusedError: it is not what the task asks for.
        """
        check_size(size, await self.expected(lease.record), self._hub.settings.max_upload_bytes)

    async def _commit(self, upload: Upload, metrics: UpdateMetrics, engine: str) -> None:
        lease = upload.lease
        try:
            async with self._parallel:
                await self._submit(upload, metrics, engine)
        except UpdateRefusedError as error:
            await self.reject(lease, lease.upload, error)
        except Exception:
            # Whatever it is: one update must not end the gateway, and its task is done by somebody else.
            log.exception("an update could not be kept; its task goes back", extra=where(lease))
            self._hub.give_back(lease, delay_s=1.0)
            self._answer(lease, UploadRejected(lease=lease.id, upload=lease.upload, code="gateway", reason="try again"))
        else:
            self._hub.finish(lease, "accepted")
            self._hub.note_acceptance(lease.record.client)
            self._answer(lease, UploadAccepted(lease=lease.id, upload=lease.upload))
        finally:
            lease.committing = False

    async def _submit(self, upload: Upload, metrics: UpdateMetrics, engine: str) -> None:
        record, task = upload.lease.record, upload.lease.record.task
        expected = await self.expected(record)
        if (over := self._hub.facts.is_over(upload.lease.key)) is not None:
            raise UpdateRefusedError("stale", over)
        check_metrics(metrics, expected)
        data, objects = upload.bytes(), self._hub.bus.objects
        try:
            if len(data) <= SMALL:
                check_update(data, expected)
                crash_point("gateway.checked")
                ref = await objects.put(data.tobytes(), media_type=MEDIA_TYPE, sha256=upload.sha256)
            else:
                await asyncio.to_thread(check_update, data, expected)
                ref = await objects.put_file(upload.path, MEDIA_TYPE, sha256=upload.sha256)
        except ObjectCorruptError:
            raise UpdateRefusedError("digest", "the bytes do not have the digest that was announced") from None
        crash_point("gateway.object_put")
        submitted = UpdateSubmitted(
            run=task.run,
            round=task.round,
            user=task.user,
            base_model=expected.base_model,
            update=ref,
            encoding=expected.config.training.encoding,
            metrics=metrics,
            client=record.client,
            engine=engine,
        )
        delivery = self._hub.delivery(upload.lease)
        try:
            await self._hub.bus.publish(submitted, cause=delivery.stored.event if delivery else None)
            crash_point("gateway.submitted")
        except ConflictingEventError:
            raise UpdateRefusedError("duplicate", "this user's update was submitted before") from None

    async def reject(self, lease: Lease, number: int, error: UpdateRefusedError) -> None:
        """Ends a lease whose update does not count; its task goes back unless nobody needs it any more."""
        lease.committing = True
        await self.publish_rejection(lease.record, error)
        if error.code in ("stale", "duplicate", "unknown_task"):
            self._hub.finish(lease, "revoked")
            shut_out = False
        else:
            self._hub.give_back(lease)
            shut_out = self._hub.note_rejection(lease.record.client)
        self._answer(lease, UploadRejected(lease=lease.id, upload=number, code=error.code, reason=error.message))
        if shut_out and (member := self._hub.members.get(lease.record.client)) is not None:
            member.outbox.close(1008, SHUT_OUT)

    async def publish_rejection(self, record: LeaseRecord, error: UpdateRefusedError) -> None:
        """Says on the bus that an update was rejected; a lease has one rejection."""
        task = record.task
        rejected = UpdateRejected(
            run=task.run,
            round=task.round,
            user=task.user,
            attempt=f"lease-{record.attempt}",
            code=error.code,
            reason=error.message,
            client=record.client,
        )
        log.info("update rejected: %s, %s", error.code, error.message, extra=where(Lease(record)))
        try:
            await self._hub.bus.publish(rejected)
        except ConflictingEventError:
            # A gateway that stopped right after saying so meets its own words.
            log.info("this lease's rejection was published before", extra=where(Lease(record)))

    def _answer(self, lease: Lease, message: UploadAccepted | UploadRejected) -> None:
        if (member := self._hub.members.get(lease.record.client)) is not None:
            member.outbox.say(message)
