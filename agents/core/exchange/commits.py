"""From a complete upload to a fact: checked, stored, and said to be submitted or rejected."""

from __future__ import annotations

import logging
from collections import deque

from agents.core.exchange.answers import SHUT_OUT
from agents.core.exchange.connections import Connection, Upload
from agents.core.exchange.effects import CheckUpdate, Commit, Effects, PublishRejection, PublishUpdate, StoreUpdate
from agents.core.exchange.leases import Lease
from agents.core.exchange.members import Members
from agents.core.exchange.messages import UploadAccepted, UploadBegin, UploadCommit, UploadRejected
from agents.core.exchange.pool import Pool
from agents.core.exchange.presence import Presence
from agents.core.exchange.runs import Runs
from agents.core.exchange.upload_rules import Expected, UpdateRefusedError, submission
from agents.words.events import UpdateMetrics, UpdateRejected
from bus.words.values import Ref

log = logging.getLogger(__name__)
PARALLEL = 8
AGAIN_S = 1.0


class Commits:
    """Each commit and each rejection ends its lease, whatever happens to the client's connection meanwhile.

    While one is under way its lease is ``committing``, and nothing else may end it. The answer goes to whatever
    connection the client has by then.

    Attributes:
        accepted: updates so far.
        refused: updates so far.
        unwritten: rejections that no event tells of, since the stream has enough of that task.
    """

    def __init__(self, effects: Effects, members: Members, presence: Presence, pool: Pool, runs: Runs) -> None:
        self._effects = effects
        self._members = members
        self._presence = presence
        self._pool = pool
        self._runs = runs
        self._running = 0
        self._waiting: deque[tuple[Upload, UpdateMetrics, str]] = deque()
        self.accepted = self.refused = self.unwritten = 0

    def expected(self, lease: Lease) -> Expected:
        """What the lease's update has to look like.

        Raises:
            UpdateRefusedError: ``unknown_task`` when the round was never planned.
        """
        expected = self._runs.expected(lease.record.task)
        if expected is None:
            raise UpdateRefusedError("unknown_task", "no such round was planned")
        return expected

    # Updates

    def start(self, upload: Upload, metrics: UpdateMetrics, engine: str) -> None:
        """A complete upload is to count; at most ``PARALLEL`` are under way."""
        upload.lease.committing = True
        self._waiting.append((upload, metrics, engine))
        self._go_on()

    def _go_on(self) -> None:
        while self._waiting and self._running < PARALLEL:
            upload, metrics, engine = self._waiting.popleft()
            try:
                if (over := self._runs.is_over(upload.lease.key, upload.lease.record.sequence)) is not None:
                    raise UpdateRefusedError("stale", over)
                commit = Commit(upload, metrics, engine, self.expected(upload.lease))
            except UpdateRefusedError as error:
                self.reject(upload.lease, error)
            else:
                self._running += 1
                self._effects.add(CheckUpdate(commit))

    def checked(self, commit: Commit, norm: float | UpdateRefusedError) -> None:
        """The bytes and figures were judged: the update's norm, or why it does not count."""
        if isinstance(norm, UpdateRefusedError):
            self._refused(commit, norm)
        else:
            commit.norm = norm
            self._effects.add(StoreUpdate(commit))

    def stored(self, commit: Commit, ref: Ref | UpdateRefusedError) -> None:
        """The bytes lie in the object store, or it refused them."""
        if isinstance(ref, UpdateRefusedError):
            self._refused(commit, ref)
            return
        lease = commit.upload.lease
        event = submission(
            lease.record.task,
            commit.expected,
            ref,
            commit.metrics,
            client=lease.record.client,
            engine=commit.engine,
            norm=commit.norm,
        )
        self._effects.add(PublishUpdate(commit, event, self._pool.cause(lease)))

    def submitted(self, commit: Commit, conflict: bool) -> None:
        """The update is in the stream, or ``conflict``: another one of this task is."""
        if conflict:
            self._refused(commit, UpdateRefusedError("duplicate", "this user's update was submitted before"))
            return
        lease = commit.upload.lease
        self.accepted += 1
        self._pool.finish(lease, "accepted")
        self._pool.count(lease)
        self._members.forgive(lease.record.client, lease.record.token, lease.address)
        self._answer(lease, UploadAccepted(lease=lease.id, upload=lease.upload))
        self._done()

    def failed(self, commit: Commit) -> None:
        """A step could not be done: one update must not end the gateway, and its task is done by somebody else."""
        self._give_up(commit.upload.lease)
        self._done()

    def _refused(self, commit: Commit, error: UpdateRefusedError) -> None:
        self.reject(commit.upload.lease, error)
        self._done()

    def _done(self) -> None:
        self._running -= 1
        self._go_on()

    # Rejections

    def reject(self, lease: Lease, error: UpdateRefusedError) -> None:
        """The lease's update does not count; the lease ends once that has been said on the bus."""
        lease.committing = True
        self._publish(lease, error, None)

    def cannot(self, lease: Lease, why: str, now: float) -> None:
        """The client cannot do the task: it rests a while, or is put aside when nobody can."""
        log.warning("client %s cannot do it: %s", lease.record.client, why, extra=lease.about)
        self._pool.fault(lease)
        refusals = self._pool.refusals
        rest_s = refusals.refuse(lease.key, lease.record.client, self._pool.able(lease.key, now), now)
        if rest_s is None:
            reason = f"{refusals.refused_by(lease.key)} of the clients cannot do it, and no other does: {why}"
            self.reject(lease, UpdateRefusedError("refused", reason))
        else:
            self._pool.give_back(lease, delay_s=rest_s)

    def answer_late(self, connection: Connection, client: str, message: UploadBegin | UploadCommit) -> bool:
        """Answers for a lease that ended before; a stale update is rejected on the bus too, and first."""
        found = self._pool.leases.outcome(message.lease, client)
        if found is None:
            return False
        outcome, record = found
        if outcome == "accepted":
            self._effects.say(connection, UploadAccepted(lease=message.lease, upload=message.upload))
        else:
            connection.busy = True
            self._publish(
                Lease(record, upload=message.upload), UpdateRefusedError("stale", "the task was over"), connection
            )
        return True

    def _publish(self, lease: Lease, error: UpdateRefusedError, asker: Connection | None) -> None:
        task = lease.record.task
        event = UpdateRejected(
            run=task.run,
            round=task.round,
            user=task.user,
            attempt=f"lease-{lease.record.attempt}",
            code=error.code,
            reason=error.message,
            client=lease.record.client,
        )
        log.info("update rejected: %s, %s", error.code, error.message, extra=lease.about)
        written = error.code == "refused" or self._runs.may_reject(lease.key, event.attempt)
        self.unwritten += not written
        self._effects.add(PublishRejection(event, lease, asker, written=written))

    def rejected(self, effect: PublishRejection, now: float, *, said: bool) -> None:
        """The rejection is in the stream or counted, or could not be ``said``."""
        event, lease = effect.event, effect.lease
        message = UploadRejected(lease=lease.id, upload=lease.upload, code=event.code, reason=event.reason)
        if not said:
            self._runs.not_rejected(lease.key, event.attempt)
        if effect.asker is not None:
            effect.asker.busy = False
            self._effects.say(effect.asker, message)
        elif not said:
            self._give_up(lease)
        elif event.code == "refused":
            self._pool.finish(lease, "revoked")
        elif event.code in ("stale", "duplicate", "unknown_task"):
            self._pool.finish(lease, "revoked")
            self._answer(lease, message)
        else:
            self._pool.fault(lease)
            self._pool.give_back(lease)
            self.refused += 1
            self._answer(lease, message)
            self._count(lease, now)

    def _count(self, lease: Lease, now: float) -> None:
        client, token = lease.record.client, lease.record.token
        if self._members.count_rejection(client, token, lease.address, now):
            connection = self._members.get(client)
            if connection is not None:
                self._presence.close(connection, SHUT_OUT, now)

    def _give_up(self, lease: Lease) -> None:
        self._pool.give_back(lease, delay_s=AGAIN_S)
        self._answer(lease, UploadRejected(lease=lease.id, upload=lease.upload, code="gateway", reason="try again"))

    def _answer(self, lease: Lease, message: UploadAccepted | UploadRejected) -> None:
        if (connection := self._members.get(lease.record.client)) is not None:
            self._effects.say(connection, message)
