"""A recorded run replays to the same bits, or the replay says where it first differs."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from agents.audit.replay import Replay, replay_run
from agents.audit.replay.aggregator import AggregatorReplay
from agents.core.learning.fixed_point import AggregationOverflowError
from agents.core.learning.magnitudes import NonFiniteUpdateError, UpdateMagnitudeError
from agents.core.rounds.aggregation import RoundAggregation
from agents.core.rounds.intents import AssignTasks
from agents.core.rounds.plan import RunState
from agents.core.strategies.registry import StrategyNotAllowedError, UnknownStrategyError
from agents.words.events import (
    DroppedImage,
    ModelPublished,
    RoundClosed,
    RoundFailed,
    RoundPlanned,
    RoundStarted,
    RunFinished,
    RunStarted,
    TaskAssigned,
    UpdateSubmitted,
)
from agents.words.run_config import RunDataset, UserShard
from bus.errors import ObjectMissingError
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
    ref_of,
    run_started,
    submitted,
)

USERS = ("u0", "u1", "u2")


def recorded_run(multiple: float | None = None) -> tuple[Stream, dict[str, bytes]]:
    """One round of three users with a quorum of two, and a late update."""
    dataset = RunDataset(
        classes=("a", "b", "c"), users=tuple(UserShard(user=user, shard=ANY_REF) for user in USERS), held_out=ANY_REF
    )
    body = dataset.model_dump_json().encode()
    objects = {BASE_REF.sha256: BASE.tobytes(), ref_of(body).sha256: body}
    stream = Stream()
    settings = config(users=3, fraction=0.6, deadline_s=60).model_copy(update={"clip_to_median": multiple})
    started = run_started(settings).model_copy(update={"dataset": ref_of(body)})
    stream.add(started)
    dropped = (DroppedImage(index=1, reason="ambiguous"),)
    labels = [labelled("u0"), labelled("u1", (1, None)).model_copy(update={"dropped": dropped}), labelled("u2")]
    one, dispatcher = RoundAggregation(started, 1), RunState(started, USERS)
    plan = planned(3, 2).model_copy(update={"learning_rate": settings.training.learning_rate})
    for data in (*labels, RoundStarted(run=RUN, round=1), plan):
        stored = stream.add(data)
        one.fold(stored)
        dispatcher.fold(stored)
    intent = dispatcher.decide()
    assert isinstance(intent, AssignTasks)
    for task in intent.tasks:
        one.fold(stream.add(task))
    for index, user in enumerate(("u1", "u0")):
        delta = np.arange(4, dtype=np.float32) + index
        one.fold(stream.add(submitted(user, delta, examples=index + 1, objects=objects), after_s=1))
    closed = one.decide(stream.now)
    assert isinstance(closed, RoundClosed)
    one.fold(stream.add(submitted("u2", objects=objects)))
    one.fold(stream.add(closed))
    stream.add(publish(one, objects))
    return stream, objects


def test_a_recorded_run_replays_to_the_recorded_model() -> None:
    stream, objects = recorded_run()
    outcome = replay_run(stream.events, objects)
    published = stream.events[-1].event.data
    assert isinstance(published, ModelPublished)
    assert outcome.differences == []
    assert outcome.final_model == published.model.sha256


def test_a_run_that_clips_to_the_median_replays_to_the_recorded_model() -> None:
    stream, objects = recorded_run(0.5)
    assert replay_run(stream.events, objects).differences == []
    published = stream.events[-1].event.data
    assert isinstance(published, ModelPublished)
    assert published.clip_norm == 0.5 * np.sqrt(30.0)
    outcome = replay_run(with_data(stream, -1, clip_norm=1.0), objects)
    assert [one.what for one in outcome.differences] == ["what is said of round 1"]


def test_a_norm_that_is_not_the_updates_is_named_and_one_of_another_processor_is_not() -> None:
    stream, objects = recorded_run()
    index = next(i for i, one in enumerate(stream.events) if isinstance(one.event.data, UpdateSubmitted))
    norm = stream.events[index].event.data.norm
    for said, differs in ((norm * (1 + 1e-14), False), (None, False), (norm * (1 + 1e-9), True)):
        outcome = replay_run(with_data(stream, index, norm=said), objects)
        assert [one.role for one in outcome.differences] == ["gateway"] * differs


@pytest.mark.parametrize("value", [1e30, 1.07e8, 2.0**31])
def test_a_refusal_for_a_huge_value_is_what_the_bytes_lead_to(value: float) -> None:
    stream, objects = recorded_run()
    body = np.full(4, value, "<f4").tobytes()
    objects[ref_of(body).sha256] = body
    started, kept = stream.events[0].event.data, stream.events[:-4]
    assert isinstance(started, RunStarted)
    huge, one = Stream(), RoundAggregation(started, 1)
    for stored in kept:
        one.fold(huge.add(stored.event.data))
    one.fold(huge.add(submitted("u0").model_copy(update={"update": ref_of(body)})))
    candidate = next(each for each in one.wanted() if each.update.user == "u0")
    with pytest.raises(UpdateMagnitudeError) as refused:
        one.add(candidate, body)
    huge.add(one.refusal_of(candidate, refused.value))
    assert replay_run(huge.events, objects, roles=["aggregator"]).differences == []
    # The gateway of this version would not have let it in, and says so.
    (difference,) = replay_run(huge.events, objects, roles=["gateway"]).differences
    assert difference.replayed.startswith("magnitude")


def test_in_a_plan_of_old_the_update_that_came_last_is_the_one_that_was_too_much() -> None:
    stream, started = Stream(), run_started(config(users=2))
    objects = {BASE_REF.sha256: BASE.tobytes()}
    huge = np.full(4, 2.0**29, np.float32)
    for data in (
        planned(2, 1).model_copy(update={"largest_value": None}),
        assigned("u0"),
        assigned("u1"),
        submitted("u1", huge, objects=objects),
        submitted("u0", huge * np.float32(1.5), objects=objects),
    ):
        stream.add(data)
    one, outcome, replay = RoundAggregation(started, 1), Replay(RUN), AggregatorReplay(started, objects)
    for stored in stream.events:
        one.fold(stored)
        replay.take(stored, outcome)
        if isinstance(stored.event.data, UpdateSubmitted) and stored.event.data.user == "u1":
            (first,) = one.wanted()
            one.add(first, objects[first.update.update.sha256])
    (second,) = one.wanted()
    with pytest.raises(AggregationOverflowError) as refused:
        one.add(second, objects[second.update.update.sha256])
    replay.take(stream.add(one.refusal_of(second, refused.value)), outcome)
    assert outcome.differences == []


def test_the_model_is_the_weighted_mean_of_the_accepted_updates_alone() -> None:
    stream, objects = recorded_run()
    published = stream.events[-1].event.data
    assert isinstance(published, ModelPublished)
    model = np.frombuffer(objects[published.model.sha256], "<f4")
    np.testing.assert_allclose(model, np.arange(4) + 2 / 3, rtol=1e-6)


def with_data(stream: Stream, index: int, **changes: object) -> list:
    events = list(stream.events)
    event = events[index].event
    data = event.data.model_copy(update=changes)
    events[index] = dataclasses.replace(events[index], event=event.model_copy(update={"data": data}))
    return events


def test_a_model_with_other_bits_is_named() -> None:
    stream, objects = recorded_run()
    outcome = replay_run(with_data(stream, -1, model=BASE_REF), objects)
    assert [one.what for one in outcome.differences] == ["the model of round 1"]
    assert outcome.differences[0].sequence == stream.events[-1].sequence


def test_a_decision_that_the_events_do_not_lead_to_is_named() -> None:
    stream, objects = recorded_run()
    index = next(i for i, one in enumerate(stream.events) if isinstance(one.event.data, RoundClosed))
    outcome = replay_run(with_data(stream, index, accepted=3), objects)
    assert outcome.differences[0].what == "the decision on round 1"
    assert '"accepted":3' in outcome.differences[0].recorded


def test_a_refusal_of_the_aggregator_is_what_the_events_lead_to() -> None:
    stream, objects = recorded_run()
    started = stream.events[0].event.data
    assert isinstance(started, RunStarted)
    one = RoundAggregation(started, 1)
    for stored in stream.events:
        one.fold(stored)
    (refusal,) = one.refusals()
    stream.add(refusal)
    assert replay_run(stream.events, objects).differences == []
    for changes in ({"code": "norm"}, {"attempt": "seq-1"}):
        outcome = replay_run(with_data(stream, -1, **changes), objects)
        assert [(one.role, one.sequence) for one in outcome.differences] == [("aggregator", len(stream.events))]


@pytest.mark.parametrize("after", [1, 4, 6, 9])
def test_a_run_that_an_operator_cancelled_anywhere_has_no_difference(after: int) -> None:
    stream, objects = recorded_run()
    cut = Stream()
    for stored in stream.events[:after]:
        cut.add(stored.event.data)
    cut.add(RunFinished(run=RUN, status="cancelled", rounds=0))
    assert replay_run(cut.events, objects).differences == []


def test_an_update_that_the_recording_lacks_is_named() -> None:
    stream, objects = recorded_run()
    update = next(one.event.data for one in stream.events if isinstance(one.event.data, UpdateSubmitted))
    del objects[update.update.sha256]
    outcome = replay_run(stream.events, objects)
    assert [one.role for one in outcome.differences] == ["gateway", "aggregator"]
    assert all("no such object" in one.replayed or "no object" in one.replayed for one in outcome.differences)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [(TaskAssigned, {"labels": (0, 0)}), (TaskAssigned, {"seed": 1}), (RoundPlanned, {"quorum": 3})],
)
def test_words_of_the_dispatcher_that_the_events_do_not_lead_to_are_named(
    kind: type[Payload], changes: dict[str, object]
) -> None:
    stream, objects = recorded_run()
    index = next(i for i, one in enumerate(stream.events) if isinstance(one.event.data, kind))
    outcome = replay_run(with_data(stream, index, **changes), objects)
    assert outcome.differences[0].what == f"what it says ({kind.TYPE})"
    assert outcome.differences[0].sequence == stream.events[index].sequence


def test_a_recording_without_its_start_is_refused() -> None:
    stream, objects = recorded_run()
    with pytest.raises(ObjectMissingError, match=r"run\.started"):
        replay_run(stream.events[1:], objects)


def failed_before_its_plan(labels: tuple[int | None, ...], reason: str) -> tuple[Stream, dict[str, bytes]]:
    """A run whose only round failed without a plan."""
    dataset = RunDataset(classes=("a", "b"), users=(UserShard(user="u0", shard=ANY_REF),), held_out=ANY_REF)
    body = dataset.model_dump_json().encode()
    stream = Stream()
    stream.add(run_started(config(users=1)).model_copy(update={"dataset": ref_of(body)}))
    stream.add(labelled("u0", labels))
    stream.add(RoundStarted(run=RUN, round=1))
    stream.add(RoundFailed(run=RUN, round=1, reason=reason))
    text = f"round 1: {reason}"
    stream.add(RunFinished(run=RUN, status="failed", reason=text, rounds=0, final_model=BASE_REF))
    return stream, {ref_of(body).sha256: body}


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        ((1, 0), "the round cannot be planned: base model x is not in the object store"),
        ((None, None), "no picked user has a labelled image"),
    ],
)
def test_a_round_that_could_not_be_planned_is_the_dispatchers_word(labels: tuple[int | None, ...], reason: str) -> None:
    stream, objects = failed_before_its_plan(labels, reason)
    outcome = replay_run(stream.events, objects, roles=["dispatcher", "aggregator"])
    assert outcome.differences == []
    assert outcome.checked == {"dispatcher": 2}


def test_a_round_that_failed_for_no_reason_that_the_rules_know_is_named() -> None:
    stream, objects = failed_before_its_plan((None, None), "a bad day")
    outcome = replay_run(stream.events, objects, roles=["dispatcher"])
    assert [one.what for one in outcome.differences] == ["what it says (round.failed)"]


@pytest.mark.parametrize(("code", "differs"), [("nonfinite", False), ("size", True)])
def test_a_refusal_for_its_bytes_is_what_the_bytes_lead_to(code: str, differs: bool) -> None:
    objects = {BASE_REF.sha256: BASE.tobytes()}
    bad = np.full(BASE.size, np.nan, "<f4").tobytes()
    objects[ref_of(bad).sha256] = bad
    stream, started = Stream(), run_started(config(users=1))
    outcome, replay = Replay(RUN), AggregatorReplay(started, objects)
    one = RoundAggregation(started, 1)
    for data in (planned(1, 1), assigned("u0"), submitted("u0").model_copy(update={"update": ref_of(bad)})):
        one.fold(stored := stream.add(data))
        replay.take(stored, outcome)
    (candidate,) = one.wanted()
    refusal = one.refusal_of(candidate, NonFiniteUpdateError("in other words")).model_copy(update={"code": code})
    replay.take(stream.add(refusal), outcome)
    assert (outcome.differences != []) == differs


def test_a_plan_that_states_a_huge_model_is_a_difference_and_takes_no_memory() -> None:
    stream, objects = recorded_run()
    index = next(i for i, one in enumerate(stream.events) if isinstance(one.event.data, RoundPlanned))
    huge = BASE_REF.model_copy(update={"size": 2**62})
    outcome = replay_run(with_data(stream, index, base_model=huge), objects, roles=["aggregator"])
    assert any("the plan says" in one.replayed for one in outcome.differences)


def test_a_recording_whose_strategy_is_not_here_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    stream, objects = recorded_run()
    started = stream.events[0].event.data
    assert isinstance(started, RunStarted)
    events = with_data(stream, 0, config=started.config.model_copy(update={"strategy": "mine:Strategy"}))
    with pytest.raises(StrategyNotAllowedError):
        replay_run(events, objects)
    monkeypatch.setenv("FEDBUS_STRATEGIES", "mine")
    with pytest.raises(UnknownStrategyError) as refused:
        replay_run(events, objects)
    assert "PYTHONPATH" in refused.value.hint
    assert replay_run(events, objects, roles=["gateway"]).differences == []
