"""The round state machine: which updates count, and when a round closes, gets more time, or fails.

Pure: events go in through ``fold``, decisions come out of ``decide``. Time enters only as the stream's timestamps and
as the ``now`` that a caller hands in, so a recording replays to the same decisions.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal

from agents.words.events import (
    ModelPublished,
    RejectionCode,
    RoundClosed,
    RoundExtended,
    RoundFailed,
    RoundPayload,
    RoundPlanned,
    TaskAssigned,
    UpdateRejected,
    UpdateSubmitted,
)
from agents.words.run_config import QuorumSpec
from bus.words.envelope import Stored
from bus.words.payload import Payload

_STREAM_ATTEMPT = "seq-"


@dataclass(frozen=True)
class Candidate:
    """An update that counts unless the aggregator finds its bytes wanting."""

    sequence: int
    update: UpdateSubmitted

    @property
    def weight(self) -> int:
        """Its weight in the mean: the user's number of examples."""
        return self.update.metrics.examples


@dataclass(frozen=True)
class Refusal:
    """An update that does not count, and why."""

    sequence: int
    update: UpdateSubmitted
    code: RejectionCode
    reason: str

    def as_event(self) -> UpdateRejected:
        """The event that says so; its attempt names the update's place in the stream, so it is written once."""
        return UpdateRejected(
            run=self.update.run,
            round=self.update.round,
            user=self.update.user,
            attempt=attempt_of(self.sequence),
            code=self.code,
            reason=self.reason,
            client=self.update.client,
        )


def attempt_of(sequence: int) -> str:
    """Name of the submission with this stream sequence in ``update.rejected``."""
    return f"{_STREAM_ATTEMPT}{sequence}"


def is_attempt_of_stream(attempt: str) -> bool:
    """Whether a rejection is of a submission in the stream, which the aggregator judged, and of no lease."""
    return attempt.startswith(_STREAM_ATTEMPT)


@dataclass
class RoundState:
    """All that happened in one round so far.

    ``excluded`` are users without an update that counts, for good: it was refused, or the task is ``undoable``, with
    the reason.
    """

    run: str
    round: int
    quorum_spec: QuorumSpec
    plan: RoundPlanned | None = None
    tasks: set[str] = field(default_factory=set)
    counted: dict[str, Candidate] = field(default_factory=dict)
    refused: dict[int, Refusal] = field(default_factory=dict)
    excluded: set[str] = field(default_factory=set)
    undoable: dict[str, str] = field(default_factory=dict)
    said: set[str] = field(default_factory=set)
    deadline: datetime | None = None
    extensions: int = 0
    quorum_at: datetime | None = None
    last_sequence: int = 0
    last_time: datetime | None = None
    closed: RoundClosed | None = None
    failed: RoundFailed | None = None
    published: ModelPublished | None = None

    @property
    def open(self) -> bool:
        """Updates still count."""
        return self.plan is not None and self.closed is None and self.failed is None

    def accepted(self) -> dict[str, Candidate]:
        """The updates that make the model, by user; final once the round is closed."""
        return dict(sorted(self.counted.items()))

    def fold(self, stored: Stored) -> Candidate | Refusal | None:
        """Takes one event of this round in; for an update, says whether it counts.

        Folding an event again, or a second event where only one may stand, changes nothing.
        """
        data = stored.event.data
        if not isinstance(data, RoundPayload) or (data.run, data.round) != (self.run, self.round):
            return None
        verdict: Candidate | Refusal | None = None
        match data:
            case RoundPlanned():
                if self.plan is None:
                    self.plan, self.deadline = data, data.deadline
            case TaskAssigned():
                self.tasks.add(data.user)
            case UpdateSubmitted():
                verdict = self._submitted(stored, data)
            case UpdateRejected():
                self._rejected(data)
            case RoundExtended():
                if self.open and data.extension == self.extensions + 1:
                    self.extensions, self.deadline = data.extension, data.deadline
            case RoundClosed():
                if self.open:
                    self.closed = data
                    self._mark_late(data.through)
            case RoundFailed():
                # Once it is closed, only the strategy or a lost object can keep a round from its model.
                if self.failed is None and self.published is None and (self.closed is None or data.code is not None):
                    self.failed = data
            case ModelPublished():
                if self.failed is None:
                    self.published = self.published or data
        if self.open:
            self.last_sequence, self.last_time = max(self.last_sequence, stored.sequence), stored.time
        return verdict

    def _submitted(self, stored: Stored, update: UpdateSubmitted) -> Candidate | Refusal:
        first = self.counted.get(update.user)
        if first is not None and first.sequence == stored.sequence:
            return first
        if (again := self.refused.get(stored.sequence)) is not None:
            return again
        code, reason = self._why_not(update)
        if code is not None:
            refusal = Refusal(stored.sequence, update, code, reason)
            self.refused[stored.sequence] = refusal
            return refusal
        candidate = Candidate(stored.sequence, update)
        self.counted[update.user] = candidate
        self._note_quorum(stored.time)
        return candidate

    def _why_not(self, update: UpdateSubmitted) -> tuple[RejectionCode | None, str]:
        if self.plan is None or update.user not in self.tasks:
            return "unknown_task", "no such task was assigned in this round"
        if update.user in self.counted or update.user in self.excluded:
            return "duplicate", "this user's update was submitted before"
        if not self.open:
            return "stale", "the round had ended"
        if update.base_model != self.plan.base_model.sha256:
            return "stale", "the update was trained from another model"
        return None, ""

    def _mark_late(self, through: int) -> None:
        """What arrived between the decision to close and the closed event itself does not count."""
        for user, late in list(self.counted.items()):
            if late.sequence > through:
                del self.counted[user]
                self.refused[late.sequence] = Refusal(late.sequence, late.update, "stale", "the round had ended")

    def unsaid(self) -> list[Refusal]:
        """The refusals that no ``update.rejected`` in the stream states yet, in the order of their updates."""
        return [self.refused[at] for at in sorted(self.refused) if attempt_of(at) not in self.said]

    def _rejected(self, rejected: UpdateRejected) -> None:
        self.said.add(rejected.attempt)
        candidate = self.counted.get(rejected.user)
        if candidate is None and rejected.code == "refused" and self.open:
            self.excluded.add(rejected.user)
            self.undoable.setdefault(rejected.user, rejected.reason)
        if candidate is None or rejected.attempt != attempt_of(candidate.sequence) or not self.open:
            return
        del self.counted[rejected.user]
        self.excluded.add(rejected.user)
        self.refused[candidate.sequence] = Refusal(candidate.sequence, candidate.update, rejected.code, rejected.reason)
        if self.plan is not None and len(self.counted) < self.plan.quorum:
            self.quorum_at = None

    def _note_quorum(self, at: datetime) -> None:
        if self.plan is not None and self.quorum_at is None and len(self.counted) >= self.plan.quorum:
            self.quorum_at = at

    def decide(self, now: datetime) -> Payload | None:
        """What has to be said at ``now``, or nothing.

        Closes when every user's update is in (``all``), when the quorum is reached and the grace is over (``quorum``),
        or at the deadline with a quorum (``deadline``). At a deadline without one the round is extended as often as
        the run allows, then fails.
        """
        if not self.open or self.plan is None or self.deadline is None:
            return None
        counted, quorum = len(self.counted), self.plan.quorum
        if self.undoable and self.plan.users - len(self.excluded) < quorum:
            return self._fail(counted)
        if counted + len(self.excluded) >= self.plan.users:
            return self._close("all") if counted >= quorum else self._fail(counted)
        # The quorum's time is the broker's: a clock here that lags behind it must not keep the round open.
        here = max(now, self.last_time or now)
        if self.quorum_at is not None and here >= self.quorum_at + timedelta(seconds=self.quorum_spec.grace_s):
            return self._close("quorum")
        if now < self.deadline:
            return None
        if counted >= quorum:
            return self._close("deadline")
        if self.extensions < self.quorum_spec.extensions:
            # Clients get a whole period also where all was down, or the clock was wrong, for several of them.
            missed = int((now - self.deadline).total_seconds() // self.plan.deadline_s)
            later = self.deadline + timedelta(seconds=self.plan.deadline_s) * (missed + 2 if missed else 1)
            return RoundExtended(run=self.run, round=self.round, extension=self.extensions + 1, deadline=later)
        return self._fail(counted)

    def next_decision_at(self) -> datetime | None:
        """When ``decide`` may answer differently although nothing happens; none if only events can change it."""
        if not self.open or self.deadline is None:
            return None
        if self.quorum_at is not None:
            return min(self.deadline, self.quorum_at + timedelta(seconds=self.quorum_spec.grace_s))
        return self.deadline

    def _close(self, reason: Literal["quorum", "all", "deadline"]) -> RoundClosed:
        assert self.plan is not None
        return RoundClosed(
            run=self.run,
            round=self.round,
            reason=reason,
            accepted=len(self.counted),
            missing=self.plan.users - len(self.counted) - len(self.excluded),
            rejected=len(self.excluded),
            through=self.last_sequence,
        )

    def _fail(self, counted: int) -> RoundFailed:
        assert self.plan is not None
        reason = f"{counted} of {self.plan.users} updates were accepted, {self.plan.quorum} are needed"
        if self.undoable:
            user, why = min(self.undoable.items())
            reason += f"; {len(self.undoable)} tasks cannot be done, that of {user}: {why}"
        return RoundFailed(run=self.run, round=self.round, reason=reason[:500])
