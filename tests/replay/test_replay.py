"""A run that was recorded once must replay to the same bits for ever: a change that breaks old runs fails here.

``small_run.jsonl.gz`` was left by
``fedbus demo --users 4 --images 5 --rounds 2 --quorum 0.75 --clients browser:1,native:1``.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from agents.audit.ledger import check_events
from agents.audit.replay import ROLES, Replay, Role, replay_run
from agents.words.events import (
    ImagesLabelled,
    ModelEvaluated,
    ModelPublished,
    OpenRun,
    RoundClosed,
    RoundPlanned,
    RunFinished,
    RunsSettled,
    Score,
    TaskAssigned,
    UpdateRejected,
    UpdateSubmitted,
)
from bus.recording.files import Recording
from bus.words.payload import Payload
from bus.words.values import Frozen
from tests.conftest import SMALL_RUN


def published(recording: Recording) -> list[ModelPublished]:
    return [one.event.data for one in recording.events if isinstance(one.event.data, ModelPublished)]


def test_the_recorded_run_replays_to_the_same_models(recorded_run: Recording) -> None:
    outcome = replay_run(recorded_run.events, recorded_run.objects)
    assert outcome.differences == []
    assert list(outcome.models.values()) == [one.model.sha256 for one in published(recorded_run)]


def test_a_recording_with_a_word_on_what_was_open_replays_the_same(recorded_run: Recording) -> None:
    last = recorded_run.events[-1]
    said = RunsSettled(run=recorded_run.run, sequence=last.sequence, open=(OpenRun(run="another", sequence=1),))
    event = last.event.model_copy(update={"data": said, "type": "fedbus.runs.settled"})
    settled = dataclasses.replace(last, sequence=last.sequence + 1, event=event)
    outcome = replay_run([*recorded_run.events, settled], recorded_run.objects)
    assert outcome.differences == []
    assert check_events([*recorded_run.events, settled]) == check_events(recorded_run.events)


def test_browser_and_native_client_both_took_part(recorded_run: Recording) -> None:
    engines = {one.event.data.engine for one in recorded_run.events if isinstance(one.event.data, UpdateSubmitted)}
    assert any("native" in engine for engine in engines)
    assert any("web" in engine for engine in engines)


def test_the_order_of_the_updates_does_not_change_the_model(recorded_run: Recording) -> None:
    """Two updates that change places within a round leave the inputs, and so the bits, as they are."""
    events = list(recorded_run.events)
    first, second = [i for i, one in enumerate(events) if isinstance(one.event.data, UpdateSubmitted)][:2]
    events[first], events[second] = (
        type(events[first])(events[first].sequence, events[first].time, events[second].event),
        type(events[second])(events[second].sequence, events[second].time, events[first].event),
    )
    outcome = replay_run(events, recorded_run.objects)
    assert outcome.models[1] == published(recorded_run)[0].model.sha256


def test_fedbus_replay_ends_with_the_recorded_models_digest(recorded_run: Recording) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "agents.cli", "replay", str(SMALL_RUN)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0
    assert published(recorded_run)[-1].model.sha256 in done.stdout.splitlines()[-1]


def test_an_update_with_one_other_byte_is_noticed(recorded_run: Recording) -> None:
    update = next(one.event.data for one in recorded_run.events if isinstance(one.event.data, UpdateSubmitted))
    objects = dict(recorded_run.objects)
    data = bytearray(objects[update.update.sha256])
    data[1] ^= 0x40
    objects[update.update.sha256] = bytes(data)
    outcome = replay_run(recorded_run.events, objects)
    assert outcome.differences[0].what == "the model of round 1"


def test_every_event_but_the_start_and_the_first_round_is_some_roles_and_is_checked(recorded_run: Recording) -> None:
    outcome = replay_run(recorded_run.events, recorded_run.objects)
    assert set(outcome.checked) == set(ROLES)
    assert sum(outcome.checked.values()) == len(recorded_run.events) - 2


def changed(recording: Recording, kind: type[Payload], change: Callable[[Any], Payload]) -> tuple[int, Replay]:
    """The sequence of the last event of this kind, and the replay after it said something else."""
    events = list(recording.events)
    index = max(i for i, one in enumerate(events) if isinstance(one.event.data, kind))
    event = events[index].event
    other = event.model_copy(update={"data": change(event.data)})
    events[index] = dataclasses.replace(events[index], event=other)
    return events[index].sequence, replay_run(events, recording.objects)


def put(data: Frozen, **fields: object) -> Any:
    return data.model_copy(update=fields)


def other_class(data: ImagesLabelled) -> ImagesLabelled:
    first = data.labels[0]
    assert first is not None
    return put(data, labels=((first + 1) % 10, *data.labels[1:]))  # type: ignore[no-any-return]


def luckier(data: ModelEvaluated) -> ModelEvaluated:
    return put(data, updated=Score(accuracy=min(1.0, data.updated.accuracy + 0.001), loss=data.updated.loss))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("role", "kind", "change"),
    [
        pytest.param("labeller", ImagesLabelled, other_class, id="label"),
        pytest.param("labeller", ImagesLabelled, lambda data: put(data, provider="openai"), id="provider"),
        pytest.param("dispatcher", RoundPlanned, lambda data: put(data, learning_rate=1.0), id="learning rate"),
        pytest.param("dispatcher", TaskAssigned, lambda data: put(data, seed=data.seed + 1), id="seed"),
        pytest.param("dispatcher", RunFinished, lambda data: put(data, status="failed"), id="status"),
        pytest.param(
            "gateway",
            UpdateSubmitted,
            lambda data: put(data, metrics=put(data.metrics, examples=data.metrics.examples + 1)),
            id="weight",
        ),
        pytest.param("gateway", UpdateSubmitted, lambda data: put(data, encoding="float16"), id="encoding"),
        pytest.param("gateway", UpdateSubmitted, lambda data: put(data, base_model="0" * 64), id="base"),
        pytest.param("aggregator", RoundClosed, lambda data: put(data, reason="deadline"), id="reason"),
        pytest.param("aggregator", ModelPublished, lambda data: put(data, inputs_digest="0" * 64), id="inputs"),
        pytest.param("aggregator", ModelPublished, lambda data: put(data, strategy="median"), id="strategy"),
        pytest.param("aggregator", ModelPublished, lambda data: put(data, server_state=data.model), id="state"),
        pytest.param("dispatcher", RoundPlanned, lambda data: put(data, server_state=data.spec), id="kept state"),
        pytest.param("evaluator", ModelEvaluated, luckier, id="accuracy"),
        pytest.param("evaluator", ModelEvaluated, lambda data: put(data, images=data.images + 1), id="images"),
        pytest.param("evaluator", ModelEvaluated, lambda data: put(data, model="0" * 64), id="model"),
    ],
)
def test_whatever_an_agent_did_not_say_is_found_at_its_event(
    recorded_run: Recording, role: Role, kind: type[Payload], change: Callable[[Any], Payload]
) -> None:
    sequence, outcome = changed(recorded_run, kind, change)
    assert (sequence, role) in {(one.sequence, one.role) for one in outcome.differences}
    assert f"event {sequence}, {role}: " in "\n".join(map(str, outcome.differences))


def test_a_spec_that_the_rules_do_not_make_is_found(recorded_run: Recording) -> None:
    plan = next(one.event.data for one in recorded_run.events if isinstance(one.event.data, RoundPlanned))
    objects = dict(recorded_run.objects)
    spec = json.loads(objects[plan.spec.sha256])
    objects[plan.spec.sha256] = json.dumps({**spec, "epochs": spec["epochs"] + 1}).encode()
    differences = replay_run(recorded_run.events, objects, roles=["dispatcher"]).differences
    assert [one.what for one in differences] == ["the spec of round 1"]


def test_an_update_that_was_refused_as_late_and_was_not_is_found(recorded_run: Recording) -> None:
    (refused,) = [one for one in recorded_run.events if isinstance(one.event.data, UpdateRejected)]
    events = [one for one in recorded_run.events if not isinstance(one.event.data, RoundClosed)]
    differences = replay_run(events, recorded_run.objects, roles=["gateway"]).differences
    assert [(one.sequence, one.recorded, one.replayed) for one in differences] == [
        (refused.sequence, "stale", "accepted")
    ]


def test_only_the_roles_that_were_asked_for_are_replayed(recorded_run: Recording) -> None:
    events = [one for one in recorded_run.events if not isinstance(one.event.data, RoundClosed)]
    outcome = replay_run(events, recorded_run.objects, roles=["labeller"])
    assert outcome.differences == []
    assert set(outcome.checked) == {"labeller"}
    assert outcome.models == {}


def test_details_that_belong_to_another_model_are_found(recorded_run: Recording) -> None:
    evaluated = [one.event.data for one in recorded_run.events if isinstance(one.event.data, ModelEvaluated)]
    objects = dict(recorded_run.objects)
    details = json.loads(objects[evaluated[-1].details.sha256])
    details["updated"], details["base"] = details["base"], details["updated"]
    objects[evaluated[-1].details.sha256] = json.dumps(details).encode()
    outcome = replay_run(recorded_run.events, objects)
    assert {one.role for one in outcome.differences} == {"evaluator"}
