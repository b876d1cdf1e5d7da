"""The aggregator: counts a round's updates, closes it at the quorum, and publishes their average as the new model."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from agents.core.learning.encodings import Buffer, clipped_parts
from agents.core.learning.fixed_point import FixedPointSum, inputs_digest
from agents.core.rounds.state import Candidate, Refusal, RoundState
from agents.runtime.follower import Follower
from agents.runtime.round_figures import Figure, RoundFigure, Source, expose, round_figures
from agents.runtime.tasks import until
from agents.words.events import ModelPublished, RejectionCode, RoundPayload, RunFinished, RunStarted
from bus.client import Bus
from bus.errors import (
    BrokerUnavailableError,
    FedbusError,
    ObjectCorruptError,
    ObjectMissingError,
    ObjectTimeoutError,
)
from bus.process.crash_points import crash_point
from bus.words.envelope import Event, Stored
from bus.words.values import Ref

log = logging.getLogger(__name__)
RoundKey = tuple[str, int]
SMALL_BYTES = 4 << 20


@dataclass
class OpenRound:
    """A round that has no model yet: its state, its running sum, and the counted updates still to be added.

    ``since`` is the time of its first event.
    """

    state: RoundState
    since: datetime
    clip_norm: float | None = None
    pending: list[Candidate] = field(default_factory=list)
    added: set[int] = field(default_factory=set)
    total: FixedPointSum | None = None

    @property
    def extra(self) -> dict[str, object]:
        """What a log line about this round says beside its message."""
        return {"run": self.state.run, "round": self.state.round}


class Aggregator:
    """The shell around ``RoundState`` and ``FixedPointSum``.

    Its whole state is a fold over the stream: after a crash it reads the stream again, adds the accepted updates of
    the open rounds again, and goes on.
    """

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._follower = Follower(bus, "aggregator")
        self._runs: dict[str, RunStarted] = {}
        self._rounds: dict[RoundKey, OpenRound] = {}
        self._changed: dict[RoundKey, Event] = {}
        """The rounds that something happened in since they were decided on, each with the last of it."""

    async def serve(self) -> None:
        """Follows the stream for ever, and wakes up for deadlines."""
        expose(Source(self.figures, lambda: self._follower.is_live))
        await self._follower.serve(self)

    def figures(self) -> list[Figure]:
        """The rounds of the runs that are not finished."""
        return round_figures(
            RoundFigure(
                run=one.state.run,
                round=one.state.round,
                since=one.since,
                closed=one.state.closed is not None,
                published=one.state.published is not None,
                failed=one.state.failed is not None,
            )
            for one in self._rounds.values()
        )

    async def take(self, stored: Stored) -> None:
        """Folds one event into its round."""
        data = stored.event.data
        if isinstance(data, RunStarted):
            self._runs.setdefault(data.run, data)
        elif isinstance(data, RunFinished):
            self._forget(data.run)
        elif isinstance(data, RoundPayload) and data.run in self._runs:
            key = (data.run, data.round)
            if (opened := self._rounds.get(key)) is None:
                config = self._runs[data.run].config
                state = RoundState(data.run, data.round, config.quorum)
                opened = self._rounds[key] = OpenRound(state, stored.time, config.clip_norm)
            verdict = opened.state.fold(stored)
            if isinstance(verdict, Candidate):
                crash_point("aggregator.received")
                opened.pending.append(verdict)
            self._changed[key] = stored.event

    def due(self) -> datetime | None:
        """The next time at which a round closes, gets more time or fails without an event."""
        times = [at for one in self._rounds.values() if (at := one.state.next_decision_at()) is not None]
        return min(times, default=None)

    async def decide(self) -> None:
        """Acts on every round that something happened in or whose time has come, until one has something to say."""
        now = datetime.now(UTC)
        for key, opened in list(self._rounds.items()):
            if not self._follower.may_decide:
                return
            at = opened.state.next_decision_at()
            if key in self._changed or (at is not None and at <= now):
                await self._act(opened, self._changed.pop(key, None))

    def _forget(self, run: str) -> None:
        self._runs.pop(run, None)
        for key in [key for key in self._rounds if key[0] == run]:
            del self._rounds[key]
            self._changed.pop(key, None)

    async def _act(self, opened: OpenRound, cause: Event | None) -> None:
        state = opened.state
        for refusal in state.unsaid():
            await self._refuse(refusal, cause)
        if state.plan is None or state.published is not None or state.failed is not None:
            opened.total, opened.pending = None, []
            return
        await self._add_pending(opened)
        if not self._follower.may_decide:
            # What was refused comes back through the stream and counts then.
            return
        if (decision := state.decide(datetime.now(UTC))) is not None:
            log.info("%s", decision.TYPE, extra=opened.extra)
            crash_point("aggregator.closing")
            await self._follower.say(decision, cause=cause)
        elif state.closed is not None:
            await self._publish_model(opened, cause)

    async def _refuse(self, refusal: Refusal, cause: Event | None) -> None:
        log.info("update of %s refused: %s", refusal.update.user, refusal.code, extra={"run": refusal.update.run})
        await self._follower.say(refusal.as_event(), cause=cause)

    async def _add_pending(self, opened: OpenRound) -> None:
        """Adds the counted updates that are not in the sum yet; those whose bytes are bad are refused."""
        pending, opened.pending = opened.pending, []
        for candidate in pending:
            if opened.state.counted.get(candidate.update.user) != candidate:
                continue
            try:
                await self._add(opened, candidate)
            except (ObjectTimeoutError, BrokerUnavailableError):
                raise
            except FedbusError as error:
                reason = error.message[:500]
                await self._refuse(Refusal(candidate.sequence, candidate.update, _code_of(error), reason), None)

    async def _add(self, opened: OpenRound, candidate: Candidate) -> None:
        assert opened.state.plan is not None
        parameters = opened.state.plan.base_model.size // 4
        if opened.total is None:
            opened.total = FixedPointSum(parameters)
        update, total, clip = candidate.update, opened.total, opened.clip_norm
        async with self._local(update.update) as data:
            # In a thread: a large update must not keep this agent from answering.
            await asyncio.to_thread(
                total.add_parts, lambda: clipped_parts(data, update.encoding, parameters, clip), candidate.weight
            )
        opened.added.add(candidate.sequence)
        crash_point("aggregator.added")

    async def _publish_model(self, opened: OpenRound, cause: Event | None) -> None:
        state = opened.state
        assert state.plan is not None
        accepted = state.accepted()
        if opened.added != {one.sequence for one in accepted.values()}:
            # Something was added that the closed event leaves out; it decides, so the sum is built again from that.
            opened.total, opened.added = None, set()
            for candidate in accepted.values():
                await self._add(opened, candidate)
        ref = await self._put_model(opened.total, state.plan.base_model)
        crash_point("aggregator.model_put")
        await self._follower.say(model_published(state, accepted, ref), cause=cause)
        log.info("model %s from %d updates", ref.sha256[:12], len(accepted), extra=opened.extra)

    async def _put_model(self, total: FixedPointSum | None, base: Ref) -> Ref:
        if total is None:
            return base
        async with self._local(base) as data:
            parent = np.frombuffer(data, "<f4")
            with tempfile.NamedTemporaryFile(prefix="fedbus-model-") as file:
                file.truncate(parent.nbytes)
                model = np.memmap(file.name, "<f4", "r+", shape=parent.shape)
                await asyncio.to_thread(total.applied_to, parent, model)
                model.flush()
                return await self._bus.objects.put_file(Path(file.name), base.media_type)

    @contextlib.asynccontextmanager
    async def _local(self, ref: Ref) -> AsyncIterator[Buffer]:
        """An object's bytes: in memory when it is small, else in a mapped file, so that memory stays flat."""
        if ref.size <= SMALL_BYTES:
            yield await self._bus.objects.get(ref)
            return
        with tempfile.TemporaryDirectory(prefix="fedbus-object-") as folder:
            path = Path(folder) / ref.name
            await self._bus.objects.fetch_to(ref, path)
            yield np.memmap(path, np.uint8, "r")


def model_published(state: RoundState, accepted: dict[str, Candidate], model: Ref) -> ModelPublished:
    """The event that announces ``model`` as the mean of the accepted updates."""
    assert state.plan is not None
    inputs = [(user, one.update.update.sha256, one.weight) for user, one in accepted.items()]
    return ModelPublished(
        run=state.run,
        round=state.round,
        model=model,
        parent=state.plan.base_model,
        inputs_digest=inputs_digest(inputs),
        strategy="fedavg",
        updates=len(inputs),
        examples=sum(weight for _, _, weight in inputs),
    )


def _code_of(error: FedbusError) -> RejectionCode:
    """The rejection code that says what is wrong with an update's bytes."""
    if isinstance(error, ObjectMissingError | ObjectCorruptError):
        return "digest"
    return error.code if error.code in ("size", "shape", "nonfinite") else "shape"  # type: ignore[return-value]


async def serve(bus: Bus, stop: asyncio.Event) -> None:
    """The body of the aggregator agent."""
    await until(stop, Aggregator(bus).serve())
