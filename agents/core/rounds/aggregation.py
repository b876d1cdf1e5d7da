"""How a round's updates become its model: which are still to be added, what has to be said, and the model itself.

Pure: the shell reads events, brings the bytes of objects, and says what comes out. The aggregator, the replay and the
check of the ledger all drive this one class, so that what they compute cannot part.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from agents.core.learning.clipping import median_limit
from agents.core.learning.decoding import clipped_parts
from agents.core.learning.encodings import Buffer
from agents.core.learning.fixed_point import Part, inputs_digest
from agents.core.rounds.state import Candidate, Refusal, RoundState
from agents.core.strategies.gathering import RunningMean
from agents.core.strategies.registry import AnyStrategy, strategy_named
from agents.core.strategies.strategy import (
    Gathering,
    Step,
    StrategyBrokenError,
    StrategyFailedError,
    Vector,
    check_result,
    strategy_at_work,
)
from agents.words.events import (
    ModelPublished,
    RejectionCode,
    RoundFailed,
    RoundPlanned,
    RunStarted,
    UpdateRejected,
)
from bus.errors import FedbusError, ObjectCorruptError, ObjectMissingError
from bus.words.envelope import Stored
from bus.words.payload import Payload
from bus.words.values import Ref

NewArray = Callable[[int], NDArray[np.float32]]
"""Makes a float32 array of this many values, whose values do not matter: in memory, or in a mapped file."""


def in_memory(count: int) -> NDArray[np.float32]:
    """An array in memory."""
    return np.empty(count, np.float32)


@dataclass(frozen=True)
class MakeModel:
    """Intent: make the round's model (``RoundAggregation.made``), put it into the store and say it (``published``)."""

    plan: RoundPlanned


@dataclass(frozen=True)
class Made:
    """A new model, and the strategy's vectors one after the other; none where it keeps none."""

    model: NDArray[np.float32]
    server_state: NDArray[np.float32] | None


class UpdateNormUnknownError(FedbusError):
    """A run clips updates by their norm, and an update came without."""

    code = "norm"


class RoundAggregation:
    """One round as its aggregator sees it.

    Attributes:
        state: which updates count, and when the round ends.
    """

    def __init__(self, started: RunStarted, number: int, state: RoundState | None = None) -> None:
        self.state = state or RoundState(started.run, number, started.config.quorum)
        self._config = started.config
        self._gathered: Gathering | None = None
        self._broken: StrategyBrokenError | ObjectMissingError | ObjectCorruptError | None = None
        self._added: dict[int, float | None] = {}
        """By sequence what was added, and the norm that it was scaled down to, if it was larger."""

    def fold(self, stored: Stored) -> Candidate | Refusal | None:
        """Takes one event in: see ``RoundState.fold``."""
        return self.state.fold(stored)

    def refusals(self) -> list[UpdateRejected]:
        """What has to be said of updates that do not count."""
        return [refusal.as_event() for refusal in self.state.unsaid()]

    def wanted(self) -> list[Candidate]:
        """The updates that count and still have to be added: ``add`` each, in any order.

        In a round that clips to the median norm, that is known when it closes: those that turn out to be larger were
        added as they are, and are wanted once more. They come in the order of the stream: where a plan of old has no
        bound on values, that decides which of them is too much for the sum.
        """
        state = self.state
        if state.plan is None or self._problem or self._broken:
            return []
        counted = {one.sequence for one in state.counted.values()}
        if not self._added.keys() <= counted:
            # Something was added that does not count after all.
            self.release()
        limit, added = self.clip_norm, self._added
        return [
            one
            for one in sorted(state.counted.values(), key=lambda one: one.sequence)
            if one.sequence not in added or added[one.sequence] != self._limit_of(one, limit)
        ]

    def add(self, candidate: Candidate, data: Buffer) -> None:
        """Adds the update that ``data`` encodes, in place of what was added of it before.

        Raises:
            StrategyBrokenError: the strategy is at fault: there will be no model, and ``decide`` says so.
            FedbusError: its bytes are wanting and nothing was added; ``refusal_of`` says so to everybody.
        """
        try:
            self._add(candidate, data)
        except StrategyBrokenError as error:
            self._broken = error
            raise

    def _add(self, candidate: Candidate, data: Buffer) -> None:
        sequence, weight = candidate.sequence, candidate.weight
        if candidate.update.norm is None and self._config.clip_to_median is not None and self._clips:
            raise UpdateNormUnknownError("the run clips updates by their norm, and the gateway did not say it")
        if self._gathered is None:
            self._gathered = self._gather()
        if sequence in self._added:
            if not isinstance(self._gathered, RunningMean):
                raise StrategyFailedError(f"strategy {self._config.strategy} clips, and gathers in no RunningMean")
            self._gathered.remove(self._parts(candidate, data, self._added[sequence]), weight)
            del self._added[sequence]
        limit = self._limit_of(candidate, self.clip_norm)
        parts = self._parts(candidate, data, limit)
        with strategy_at_work(self._config.strategy, "gathering an update"):
            self._gathered.add(candidate.update.user, parts, weight)
        self._added[sequence] = limit

    def _gather(self) -> Gathering:
        with strategy_at_work(self._config.strategy, "gather"):
            try:
                gathered: Gathering = self._strategy.gather(self._parameters)
            except FedbusError as error:
                raise StrategyFailedError(f"strategy {self._config.strategy}: {error.message}"[:400]) from error
        return gathered

    @property
    def clip_norm(self) -> float | None:
        """The L2 norm that larger updates are scaled down to; with ``clip_to_median``, lower once the round is closed.

        It follows from events alone, so that everybody comes to the same number.
        """
        return self._config.clip_norm if self.state.closed is None else self._closed_clip_norm

    @cached_property
    def _closed_clip_norm(self) -> float | None:
        """Once the round is closed: which updates count does not change any more."""
        multiple, own = self._config.clip_to_median, self._config.clip_norm
        if multiple is None or not self._clips:
            return own
        known = [one.update.norm for one in self.state.counted.values() if one.weight > 0]
        most = math.inf if own is None else own
        limit = median_limit([min(most, norm) for norm in known if norm is not None], multiple)
        return own if limit is None else min(most, limit)

    def _limit_of(self, candidate: Candidate, limit: float | None) -> float | None:
        """The norm that this update is scaled down to under the round's ``limit``, if that touches it."""
        norm = candidate.update.norm
        return None if norm is not None and limit is not None and norm <= limit else limit

    def _parts(self, candidate: Candidate, data: Buffer, limit: float | None) -> Sequence[Part]:
        update, bound = candidate.update, self.required_plan().largest_value
        return clipped_parts(
            data, update.encoding, self._parameters, limit, norm=update.norm, largest=bound, check=False
        )

    def lost(self, error: ObjectMissingError | ObjectCorruptError) -> None:
        """What the closed round's model is made from cannot be read: there will be none, and ``decide`` says so."""
        self._broken = error

    def refusal_of(self, candidate: Candidate, error: FedbusError) -> UpdateRejected:
        """The event that says that this update does not count because of its bytes."""
        return Refusal(candidate.sequence, candidate.update, _code_of(error), error.message[:500]).as_event()

    def decide(self, now: datetime) -> Payload | MakeModel | None:
        """What has to be done at ``now``, once everything that counts was added; or nothing."""
        state = self.state
        if self.is_over:
            return None
        if self._problem and state.open:
            return RoundFailed(run=state.run, round=state.round, reason=self._problem[:500])
        if self._broken is not None and state.plan is not None:
            text, code = self._broken.message, self._broken.code
            reason = text if isinstance(self._broken, StrategyBrokenError) else f"the model cannot be made: {text}"
            return RoundFailed.model_validate(
                {"run": state.run, "round": state.round, "reason": reason[:500], "code": code}
            )
        if state.plan is not None and state.closed is not None and not self._problem:
            return MakeModel(state.plan)
        return state.decide(now)

    def made(self, parent: Buffer, before: Buffer | None, new: NewArray = in_memory) -> Made | None:
        """The model that follows from ``parent`` and the updates that were added; nothing if none has any weight.

        Then the model stays what it is, and so does the server's state.

        Args:
            parent: the bytes of the plan's base model.
            before: the bytes of the plan's server state, if it names one.
            new: makes the arrays that the result lies in.

        Raises:
            ObjectCorruptError: the bytes are not what the plan says.
            UnknownStrategyError, StrategySettingsError: there is no such strategy here.
            StrategyBrokenError: the strategy is at fault: there will be no model, and ``decide`` says so.
        """
        try:
            return self._made(parent, before, new)
        except StrategyBrokenError as error:
            self._broken = error
            raise

    def _made(self, parent: Buffer, before: Buffer | None, new: NewArray) -> Made | None:
        strategy, parameters, name = self._strategy, self._parameters, self._config.strategy
        with strategy_at_work(name, "the weight of what was gathered"):
            if self._gathered is None or self._gathered.weight == 0:
                return None
        names = strategy.VECTORS
        kept = _vectors("server state", before, names, parameters) if before is not None and names else None
        model, state = new(parameters), (new(parameters * len(names)) if names else None)
        step = Step(
            round=self.state.round,
            parent=_floats("base model", parent, parameters),
            before=kept,
            model=model,
            after={} if state is None else _split(state, names),
        )
        with strategy_at_work(name, "step"), np.errstate(over="ignore", invalid="ignore"):
            try:
                strategy.step(self._gathered, step)
            except FedbusError as error:
                raise StrategyFailedError(f"strategy {name}: {error.message}"[:400]) from error
        check_result("model", model, parameters)
        if state is not None:
            check_result("server state", state, parameters * len(names))
        return Made(model, state)

    def digests(self, parent: Buffer, before: Buffer | None, new: NewArray = in_memory) -> tuple[str, str | None]:
        """SHA-256 of the model that has to be published, and of the server's state, if any: see ``made``."""
        made = self.made(parent, before, new)
        if made is None:
            plan = self.required_plan()
            return plan.base_model.sha256, plan.server_state.sha256 if plan.server_state is not None else None
        return _digest(made.model), _digest(made.server_state) if made.server_state is not None else None

    def published(self, model: Ref, server_state: Ref | None) -> ModelPublished:
        """The event that announces ``model`` as what the strategy makes of the accepted updates."""
        state = self.state
        plan = self.required_plan()
        inputs = [(user, one.update.update.sha256, one.weight) for user, one in state.accepted().items()]
        return ModelPublished(
            run=state.run,
            round=state.round,
            model=model,
            parent=plan.base_model,
            inputs_digest=inputs_digest(inputs),
            strategy=self._config.strategy,
            updates=len(inputs),
            examples=sum(weight for _, _, weight in inputs),
            server_state=server_state,
            clip_norm=self.clip_norm if self._config.clip_to_median is not None else None,
        )

    @property
    def waits_for(self) -> FedbusError | None:
        """What keeps a closed round from its model until this agent starts again with what is wanting: a strategy."""
        return self._found if self.state.closed and not self.is_over and isinstance(self._found, FedbusError) else None

    @property
    def is_over(self) -> bool:
        """The round has its model, or will never have one."""
        return self.state.published is not None or self.state.failed is not None

    def release(self) -> None:
        """Lets go of what was gathered, and of its memory and files."""
        self._gathered, self._added = None, {}

    def required_plan(self) -> RoundPlanned:
        """The round's plan.

        Raises:
            ObjectMissingError: there is none yet.
        """
        if self.state.plan is None:
            raise ObjectMissingError(f"round {self.state.round} has no plan")
        return self.state.plan

    @cached_property
    def _found(self) -> AnyStrategy | FedbusError:
        try:
            return strategy_named(self._config.strategy, self._config.strategy_settings)
        except FedbusError as error:
            return error

    @property
    def _problem(self) -> str:
        """Why there is no strategy here; empty when there is."""
        return self._found.message if isinstance(self._found, FedbusError) else ""

    @property
    def _strategy(self) -> AnyStrategy:
        if isinstance(self._found, FedbusError):
            raise self._found
        return self._found

    @property
    def _clips(self) -> bool:
        """Whether this strategy clips to the median."""
        return not isinstance(self._found, FedbusError) and self._found.CLIPS

    @property
    def _parameters(self) -> int:
        return self.required_plan().base_model.size // 4


def _floats(what: str, data: Buffer, count: int) -> Vector:
    raw = np.frombuffer(data, np.uint8)
    if len(raw) != 4 * count:
        raise ObjectCorruptError(f"the {what} has {len(raw)} bytes instead of {count} float32 values")
    return raw.view("<f4")


def _vectors(what: str, data: Buffer, names: tuple[str, ...], parameters: int) -> dict[str, Vector]:
    return _split(_floats(what, data, len(names) * parameters), names)


def _split(values: NDArray[np.float32], names: tuple[str, ...]) -> dict[str, Vector]:
    size = len(values) // len(names)
    return {name: values[index * size : (index + 1) * size] for index, name in enumerate(names)}


def _digest(values: NDArray[np.float32]) -> str:
    return hashlib.sha256(values.astype("<f4", copy=False).data).hexdigest()


def _code_of(error: FedbusError) -> RejectionCode:
    """The rejection code that says what is wrong with an update's bytes."""
    if isinstance(error, ObjectMissingError | ObjectCorruptError):
        return "digest"
    known = ("size", "shape", "nonfinite", "magnitude", "norm")
    return error.code if error.code in known else "shape"  # type: ignore[return-value]
