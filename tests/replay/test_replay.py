"""A run that was recorded once must replay to the same bits for ever: a change that breaks old runs fails here.

``small_run.jsonl.gz`` was left by
``fedbus demo --users 4 --images 5 --rounds 2 --quorum 0.75 --clients browser:1,native:1``.
"""

from __future__ import annotations

import subprocess
import sys

from agents.core.replay import replay_run
from bus.events import ModelPublished, UpdateSubmitted
from bus.recording import Recording
from tests.conftest import SMALL_RUN


def published(recording: Recording) -> list[ModelPublished]:
    return [one.event.data for one in recording.events if isinstance(one.event.data, ModelPublished)]


def test_the_recorded_run_replays_to_the_same_models(recorded_run: Recording) -> None:
    outcome = replay_run(recorded_run.events, recorded_run.objects)
    assert outcome.differences == []
    assert list(outcome.models.values()) == [one.model.sha256 for one in published(recorded_run)]


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
