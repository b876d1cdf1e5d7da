"""The labeller's events are decided again: by the truth where it is known, else from what the event says was told."""

from __future__ import annotations

import pytest

from agents.audit.replay.labeller import LabellerReplay
from agents.audit.replay.outcome import Replay
from agents.core.labels.labels import UserLabels, images_labelled
from agents.core.labels.sources import SimulatedLabeller
from agents.words.events import DroppedImage, ImagesLabelled
from agents.words.run_config import LabellingSpec, RunDataset, UserShard
from tests.builders import ANY_REF, RUN, Stream, config, ref_of, run_started

TRUTH = b'{"u0": [0, 1, 2, 1]}'
USER = UserShard(user="u0", shard=ANY_REF)


def differences(said: ImagesLabelled, spec: LabellingSpec, truth: bytes | None = None) -> list[str]:
    """What the replay of this event finds; ``truth`` is the object of the dataset, if the recording has it."""
    started = run_started(config().model_copy(update={"labelling": spec}))
    dataset = RunDataset(
        classes=("cat", "dog", "cot"), users=(USER,), held_out=ANY_REF, truth=ref_of(truth) if truth else None
    )
    outcome, stream = Replay(RUN), Stream()
    objects = {ref_of(truth).sha256: truth} if truth else {}
    LabellerReplay(started, dataset, objects).take(stream.add(said), outcome)
    assert outcome.checked["labeller"] == 1
    return [one.what for one in outcome.differences]


def said_with(spec: LabellingSpec, labels: UserLabels, **changes: object) -> ImagesLabelled:
    started = run_started(config().model_copy(update={"labelling": spec}))
    return images_labelled(started, USER, labels, prompt_version="v3").model_copy(update=changes)


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_the_simulated_labels_are_computed_again(rate: float) -> None:
    spec = LabellingSpec(error_rate=rate)
    labels = SimulatedLabeller(TRUTH, classes=3, error_rate=rate, seed=0).label("u0")
    assert differences(said_with(spec, labels), spec, TRUTH) == []
    other = UserLabels((*labels.labels[:3], None))
    assert differences(said_with(spec, other), spec, TRUTH) == ["what it says of u0 (labels)"]


@pytest.mark.parametrize("truth", [b'{"u0": [7]}', b"{}", b"nothing"])
def test_a_truth_that_labels_nobody_is_named(truth: bytes) -> None:
    spec = LabellingSpec()
    assert differences(said_with(spec, UserLabels((0,))), spec, truth) == ["what it says of u0"]


@pytest.mark.parametrize("provider", ["openai", "recorded", "truth"])
def test_what_a_labeller_was_told_settles_to_what_it_said(provider: str) -> None:
    spec = LabellingSpec.model_validate({"provider": provider})
    dropped = (DroppedImage(index=1, reason="ambiguous", answer="cat or dog"),)
    said = said_with(spec, UserLabels((2, None), dropped, prompt_tokens=9, completion_tokens=4))
    assert differences(said, spec) == []
    for changes, what in (
        ({"labels": (3, None)}, ["labels", "dropped"]),
        ({"dropped": ()}, ["dropped"]),
        ({"labels": (2, 1)}, ["dropped"]),
        ({"shard": ref_of(b"other")}, ["shard"]),
        ({"provider": "somebody"}, ["provider"]),
        ({"model": "gpt-0"}, ["model"]),
    ):
        found = differences(said.model_copy(update=changes), spec)
        assert found == [f"what it says of u0 ({field})" for field in what]


def test_a_user_that_the_run_does_not_have_is_named() -> None:
    spec = LabellingSpec()
    assert differences(said_with(spec, UserLabels((0,)), user="u9"), spec, TRUTH) == ["what it says of u9"]
