"""The ledger check finds each thing that is wrong, one at a time, and nothing in a sound run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from agents.audit.ledger import check_decisions, check_events, check_metrics, check_model, check_sequence, rounds_of
from agents.audit.replay.aggregator import remade
from agents.core.learning.augment import default_augmentation
from agents.core.rounds.aggregation import RoundAggregation
from agents.words.events import (
    ImagesLabelled,
    ModelEvaluated,
    ModelPublished,
    RoundClosed,
    RoundFailed,
    RoundPlanned,
    RoundStarted,
    RunFinished,
    RunStarted,
    Score,
    TaskAssigned,
    UpdateRejected,
    UpdateSubmitted,
)
from agents.words.run_config import TaskSpec
from bus.words.envelope import Stored
from bus.words.payload import Payload
from tests.builders import (
    ANY_REF,
    BASE,
    BASE_REF,
    RUN,
    Stream,
    assigned,
    config,
    labelled,
    planned,
    publish,
    run_started,
    submitted,
)

USERS = ("u0", "u1", "u2")
SPEC = TaskSpec(
    run=RUN,
    round=1,
    artifacts=ANY_REF,
    base_model=BASE_REF,
    learning_rate=0.1,
    epochs=1,
    augmentations=6,
    augmentation=default_augmentation(),
    encoding="float32",
)


def sound_run() -> tuple[list[Stored], dict[str, bytes]]:
    """A run of one round: two updates count, a third is late."""
    objects = {BASE_REF.sha256: BASE.tobytes()}
    started = run_started(config(users=3))
    stream, one = Stream(), RoundAggregation(started, 1)
    stream.add(started)
    for user in USERS:
        stream.add(labelled(user))
    for data in (RoundStarted(run=RUN, round=1), planned(3, 2), *map(assigned, USERS)):
        one.fold(stream.add(data))
    for index, user in enumerate(("u0", "u1")):
        one.fold(stream.add(submitted(user, np.full(4, index, np.float32), objects=objects), after_s=1))
    closed = one.state.decide(stream.now)
    assert closed is not None
    one.fold(stream.add(closed))
    one.fold(stream.add(submitted("u2", objects=objects)))
    one.fold(stream.add(one.refusals()[0]))
    published = publish(one, objects)
    one.fold(stream.add(published))
    model = published.model
    score = Score(accuracy=0.5, loss=1.0)
    stream.add(
        ModelEvaluated(run=RUN, round=1, model=model.sha256, images=2, base=score, updated=score, details=ANY_REF)
    )
    stream.add(RunFinished(run=RUN, status="completed", rounds=1, final_model=model))
    return stream.events, objects


def changed(events: list[Stored], kind: type[Payload], **changes: object) -> list[Stored]:
    """The events, with the first of ``kind`` saying something else."""
    index = next(i for i, one in enumerate(events) if isinstance(one.event.data, kind))
    event = events[index].event
    data = event.data.model_copy(update=changes)
    other = dataclasses.replace(events[index], event=event.model_copy(update={"data": data}))
    return [*events[:index], other, *events[index + 1 :]]


def without(events: list[Stored], kind: type[Payload]) -> list[Stored]:
    """The events but for those of ``kind``."""
    return [one for one in events if not isinstance(one.event.data, kind)]


def test_a_sound_run_has_no_problem() -> None:
    events, _ = sound_run()
    assert check_events(events) == []


@pytest.mark.parametrize(
    ("corrupt", "code"),
    [
        (lambda events: without(events, RunStarted), "no_start"),
        (lambda events: [*events, events[-1]], "written_twice"),
        (lambda events: changed(events, RoundClosed, accepted=3), "accepted"),
        (lambda events: changed(events, RoundClosed, missing=0), "tasks"),
        (lambda events: without(events, UpdateRejected), "unsaid_refusal"),
        (lambda events: without(events, RoundClosed), "unclosed"),
        (lambda events: changed(events, ModelPublished, parent=ANY_REF), "parent"),
        (lambda events: changed(events, ModelPublished, inputs_digest="0" * 64), "inputs"),
        (lambda events: changed(events, ModelPublished, updates=1), "inputs"),
        (lambda events: changed(events, UpdateSubmitted, update=ANY_REF), "inputs"),
        (lambda events: changed(events, ModelPublished, strategy="median"), "strategy"),
        (lambda events: changed(events, RoundPlanned, server_state=ANY_REF), "server_state"),
        (lambda events: changed(events, TaskAssigned, labels=(0, 0)), "labels"),
        (lambda events: changed(events, TaskAssigned, shard=BASE_REF), "labels"),
        (lambda events: changed(events, ModelEvaluated, model="0" * 64), "evaluation"),
        (lambda events: changed(events, RunFinished, final_model=BASE_REF), "final_model"),
        (lambda events: without(events, ModelPublished), "rounds"),
    ],
)
def test_each_corruption_of_the_stream_is_found(corrupt: Callable[[list[Stored]], list[Stored]], code: str) -> None:
    events, _ = sound_run()
    assert code in {problem.code for problem in check_events(corrupt(events))}


def failed_run(code: str, *kept: type[Payload]) -> list[Stored]:
    """A run whose round has failed with this code, with only such of the events between as are kept."""
    events, _ = sound_run()
    stream = Stream([one for one in events if isinstance(one.event.data, (RunStarted, ImagesLabelled, *kept))])
    reason = "strategy own:Own raised in step"
    stream.add(RoundFailed.model_validate({"run": RUN, "round": 1, "reason": reason, "code": code}))
    stream.add(RunFinished(run=RUN, status="failed", reason=f"round 1: {reason}", rounds=0))
    return stream.events


UPDATES = (RoundStarted, RoundPlanned, TaskAssigned, UpdateSubmitted)


@pytest.mark.parametrize(
    ("code", "kept", "plausible"),
    [
        ("strategy_failed", (*UPDATES, UpdateRejected, RoundClosed), True),
        ("strategy_failed", UPDATES, True),
        ("strategy_result", UPDATES[:3], False),
        ("strategy_failed", (), False),
        ("object_missing", (*UPDATES, UpdateRejected, RoundClosed), True),
        ("object_corrupt", UPDATES, False),
    ],
)
def test_a_failure_with_a_code_that_cannot_have_been_is_found(
    code: str, kept: tuple[type[Payload], ...], plausible: bool
) -> None:
    problems = check_events(failed_run(code, *kept))
    assert [one.code for one in problems if one.code != "unsaid_refusal"] == ([] if plausible else ["failure"])


def test_a_gap_in_the_stream_is_found() -> None:
    assert check_sequence([1, 2, 3], 1, 3) == []
    assert [problem.sequence for problem in check_sequence([1, 3], 1, 4)] == [2, 4]


def test_a_model_that_is_not_the_aggregate_is_found() -> None:
    events, objects = sound_run()
    started = events[0].event.data
    assert isinstance(started, RunStarted)
    one = rounds_of(started, events)[1]
    model, state = remade(one, objects)
    assert check_model(one, model, state) == []
    assert [problem.code for problem in check_model(one, ANY_REF.sha256, None)] == ["aggregate"]
    assert [problem.code for problem in check_model(one, model, ANY_REF.sha256)] == ["server_state"]


def test_every_images_decision_is_accounted_for() -> None:
    events, _ = sound_run()
    started = events[0].event.data
    assert isinstance(started, RunStarted)
    assert check_decisions(events, {1: SPEC}, rounds_of(started, events)) == []
    assert {one.code for one in check_decisions(events, {}, rounds_of(started, events))} == {"decision"}


@pytest.mark.parametrize(
    "changes",
    [{"predictions": (0,)}, {"examples": 1}, {"mismatched_images": 1}, {"trained_images": 13}, {"predictions": (1, 2)}],
)
def test_an_account_of_images_that_does_not_add_up_is_found(changes: dict[str, object]) -> None:
    metrics = submitted("u0").metrics
    assert check_metrics(assigned("u0"), SPEC, metrics) is None
    assert check_metrics(assigned("u0"), SPEC, metrics.model_copy(update=changes)) is not None
