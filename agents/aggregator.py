"""The aggregator: counts a round's updates, closes it at the quorum, and publishes their average as the new model."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime

import numpy as np
from bus.client import Bus, CaughtUp

from agents.core.aggregation import inputs_digest
from agents.core.rounds import Candidate, Refusal, RoundState
from agents.core.updates import decode_update
from agents.shell import Ticker
from bus.envelope import Event, Stored
from bus.errors import ConflictingEventError, FedbusError
from bus.events import ModelPublished, Payload, RoundPayload, RunFinished, RunStarted
from bus.values import Ref

log = logging.getLogger(__name__)
RoundKey = tuple[str, int]


class Aggregator:
    """The shell around ``RoundState`` and ``FixedPointSum``.

    Its whole state is a fold over the stream: after a crash it reads the stream again, adds the accepted updates of
    the open rounds again, and goes on.
    """

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._runs: dict[str, RunStarted] = {}
        self._rounds: dict[RoundKey, RoundState] = {}
        self._sums: dict[RoundKey, Tally] = {}
        self._live = False

    async def serve(self, stop: asyncio.Event) -> None:
        """Follows the stream for ever, and wakes up for deadlines."""
        async with self._bus.follow("ev.>") as items, Ticker(items) as ticker:
            while not stop.is_set():
                item = await ticker.next_or_tick(self._next_tick())
                if item is None:
                    await self._decide_all()
                elif isinstance(item, CaughtUp):
                    self._live = True
                    await self._decide_all()
                else:
                    await self._take(item)

    def _next_tick(self) -> datetime | None:
        times = [at for state in self._rounds.values() if (at := state.next_decision_at()) is not None]
        return min(times, default=None) if self._live else None

    async def _decide_all(self) -> None:
        for key in list(self._rounds):
            await self._act(key, None)

    async def _take(self, stored: Stored) -> None:
        data = stored.event.data
        if isinstance(data, RunStarted):
            self._runs.setdefault(data.run, data)
        elif isinstance(data, RunFinished):
            self._forget(data.run)
        elif isinstance(data, RoundPayload) and data.run in self._runs:
            key = (data.run, data.round)
            state = self._rounds.setdefault(key, RoundState(data.run, data.round, self._runs[data.run].config.quorum))
            verdict = state.fold(stored)
            if isinstance(verdict, Refusal):
                await self._refuse(verdict, stored.event)
            if self._live:
                await self._act(key, stored.event)

    def _forget(self, run: str) -> None:
        self._runs.pop(run, None)
        for key in [key for key in self._rounds if key[0] == run]:
            del self._rounds[key]
            self._sums.pop(key, None)

    async def _refuse(self, refusal: Refusal, cause: Event) -> None:
        log.info("update refused: %s", refusal.code, extra=_where(refusal.update))
        await self._publish(refusal.as_event(), cause)

    async def _act(self, key: RoundKey, cause: Event | None) -> None:
        state = self._rounds.get(key)
        if state is None or state.plan is None or state.published is not None or state.failed is not None:
            self._sums.pop(key, None)
            return
        if state.open and await self._add_new(key, state):
            return
        if (decision := state.decide(datetime.now(UTC))) is not None:
            await self._publish(decision, cause)
        elif state.closed is not None:
            await self._publish_model(key, state, cause)

    async def _add_new(self, key: RoundKey, state: RoundState) -> bool:
        """Adds the counted updates that are not in the sum yet; true when one turned out bad and was refused."""
        assert state.plan is not None
        tally = self._sums.setdefault(key, Tally())
        bad = False
        for candidate in state.accepted().values():
            if candidate.sequence in tally.sequences:
                continue
            try:
                await self._add(tally, state, candidate)
            except FedbusError as error:
                bad = True
                refusal = Refusal(candidate.sequence, candidate.update, _rejection_code(error), error.message[:500])
                await self._refuse(refusal, None)
        return bad

    async def _add(self, tally: Tally, state: RoundState, candidate: Candidate) -> None:
        delta = decode_update(await self._bus.objects.get(candidate.update.update), candidate.update.encoding)
        tally.add(candidate, delta, await self._parameters(state))

    async def _parameters(self, state: RoundState) -> int:
        assert state.plan is not None
        return state.plan.base_model.size // 4

    async def _publish_model(self, key: RoundKey, state: RoundState, cause: Event | None) -> None:
        assert state.plan is not None
        accepted = state.accepted()
        tally = self._sums.get(key)
        if tally is None or tally.sequences != {one.sequence for one in accepted.values()}:
            # Another aggregator closed the round earlier in the stream than this one would have, or this one has
            # just started: the closed event decides what counts, so the sum is built again from exactly that.
            tally = self._sums[key] = Tally()
            for candidate in accepted.values():
                await self._add(tally, state, candidate)
        parent = np.frombuffer(await self._bus.objects.get(state.plan.base_model), "<f4")
        model = tally.applied_to(parent)
        ref = await self._bus.objects.put(model.astype("<f4").tobytes(), media_type=state.plan.base_model.media_type)
        await self._publish(model_published(state, accepted, ref), cause)
        log.info("model %s from %d updates", ref.sha256[:12], len(accepted), extra={"run": key[0], "round": key[1]})

    async def _publish(self, data: Payload, cause: Event | None) -> None:
        try:
            await self._bus.publish(data, cause=cause)
        except ConflictingEventError:
            # Another aggregator was faster; what it said arrives through the stream and counts.
            log.info("%s was already said by another aggregator", data.TYPE, extra={"run": data.run})


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
