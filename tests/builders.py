"""Builds events, streams and small runs for tests of the pure cores."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import numpy as np
from numpy.typing import NDArray

from agents.core.learning.augment import default_augmentation
from agents.core.learning.decoding import update_norm
from agents.core.learning.encodings import encode_update
from agents.core.learning.magnitudes import LARGEST_VALUE
from agents.core.rounds.aggregation import RoundAggregation
from agents.words.events import (
    ImagesLabelled,
    ModelPublished,
    RoundPlanned,
    RunStarted,
    TaskAssigned,
    UpdateMetrics,
    UpdateSubmitted,
)
from agents.words.run_config import QuorumSpec, RunConfig, TrainingSpec
from bus.words.envelope import Stored, new_event
from bus.words.payload import Payload
from bus.words.values import Ref

RUN = "run"
START = datetime(2026, 1, 1, tzinfo=UTC)
PARAMETERS = 4


def ref_of(data: bytes) -> Ref:
    """The ref that ``data`` has in the object store."""
    digest = hashlib.sha256(data).hexdigest()
    return Ref(name=f"sha256-{digest}", size=len(data), sha256=digest)


BASE = np.zeros(PARAMETERS, "<f4")
BASE_REF = ref_of(BASE.tobytes())
ANY_REF = ref_of(b"something")


def config(*, rounds: int = 1, users: int = 3, **quorum: float) -> RunConfig:
    """A run's config with this quorum spec."""
    return RunConfig(
        rounds=rounds,
        users=users,
        quorum=QuorumSpec.model_validate(quorum),
        training=TrainingSpec(augmentation=default_augmentation()),
    )


def run_started(run_config: RunConfig) -> RunStarted:
    """The event that opens the run."""
    return RunStarted(
        run=RUN,
        config=run_config,
        config_digest=ANY_REF.sha256,
        dataset=ANY_REF,
        artifacts=ANY_REF,
        base_model=BASE_REF,
        users=run_config.users,
    )


def labelled(user: str, labels: Sequence[int | None] = (1, 2)) -> ImagesLabelled:
    """The user's labels."""
    return ImagesLabelled(run=RUN, user=user, shard=ANY_REF, labels=tuple(labels), provider="truth")


def planned(users: int, quorum: int, *, round: int = 1, deadline_s: float = 60.0) -> RoundPlanned:
    """A plan whose deadline counts from ``START``."""
    return RoundPlanned(
        run=RUN,
        round=round,
        base_model=BASE_REF,
        spec=ANY_REF,
        users=users,
        quorum=quorum,
        learning_rate=0.1,
        deadline=START + timedelta(seconds=deadline_s),
        deadline_s=deadline_s,
        largest_value=LARGEST_VALUE,
    )


def assigned(user: str, *, round: int = 1) -> TaskAssigned:
    """The user's task."""
    return TaskAssigned(run=RUN, round=round, user=user, shard=ANY_REF, labels=(1, 2), spec=ANY_REF, seed=7)


def submitted(
    user: str,
    delta: NDArray[np.float32] | None = None,
    *,
    round: int = 1,
    examples: int = 2,
    base: Ref = BASE_REF,
    objects: dict[str, bytes] | None = None,
) -> UpdateSubmitted:
    """The user's update; its bytes go into ``objects`` when given."""
    values = np.full(PARAMETERS, 0.5, np.float32) if delta is None else delta
    data = encode_update(values, "float32")
    if objects is not None:
        objects[ref_of(data).sha256] = data
    return UpdateSubmitted(
        run=RUN,
        round=round,
        user=user,
        base_model=base.sha256,
        update=ref_of(data),
        encoding="float32",
        metrics=UpdateMetrics(
            predictions=(0, 0), examples=examples, mismatched_images=examples, trained_images=7 * examples
        ),
        client="client",
        engine="test",
        norm=update_norm(data, "float32", len(values)),
    )


def publish(one: RoundAggregation, objects: dict[str, bytes]) -> ModelPublished:
    """Makes the model of a closed round from ``objects``, puts it there too, and gives the event that announces it."""
    plan = one.required_plan()
    for candidate in one.wanted():
        one.add(candidate, objects[candidate.update.update.sha256])
    before = objects[plan.server_state.sha256] if plan.server_state is not None else None
    made = one.made(objects[plan.base_model.sha256], before)
    if made is None:
        return one.published(plan.base_model, plan.server_state)
    refs = []
    for values in (made.model, made.server_state):
        data = values.tobytes() if values is not None else b""
        objects[ref_of(data).sha256] = data
        refs.append(ref_of(data))
    return one.published(refs[0], refs[1] if made.server_state is not None else None)


@dataclass
class Stream:
    """A stream in memory: gives each payload the next sequence number and a time."""

    events: list[Stored] = field(default_factory=list)
    now: datetime = START

    def add(self, data: Payload, *, after_s: float = 0.0) -> Stored:
        """Appends ``data``, ``after_s`` seconds after the event before."""
        self.now += timedelta(seconds=after_s)
        event = new_event(data, source="test").model_copy(update={"time": self.now})
        stored = Stored(len(self.events) + 1, self.now, event)
        self.events.append(stored)
        return stored


def subject_example(payload: type[Payload]) -> Payload:
    """A payload with nothing but the fields that its subject is made of, each 1."""
    return payload.model_construct(None, **dict.fromkeys(payload.TOKENS, "1"))
