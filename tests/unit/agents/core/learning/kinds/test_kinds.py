"""The kinds of task: their names, and what image classification makes of shards, outputs and labels."""

from __future__ import annotations

import numpy as np
import pytest

from agents.core.learning.augment import augment, default_augmentation
from agents.core.learning.kinds import TaskKindUnknownError, check_kind, kinds, open_kind
from agents.words.events import TaskAssigned
from agents.words.run_config import DEFAULT_KIND, RunConfig, TaskSpec, TrainingSpec
from artifacts.manifest import DEFAULT_KIND as KIND_OF_OLD_MANIFESTS
from artifacts.pixels import pixel_table, to_pixel_values
from bus.words.values import Ref
from data.errors import ShardError
from data.shards import encode_shard
from tests.unit.agents.core.learning.models import GREY

KIND = open_kind(DEFAULT_KIND, GREY)
IMAGES = np.random.default_rng(3).integers(0, 256, (5, 6, 6, 1), np.uint8)
REF = Ref(name="sha256-" + "0" * 64, size=12, sha256="0" * 64)
TASK = TaskAssigned(run="r", round=1, user="u", shard=REF, labels=(0, 2, None, 1, 2), spec=REF, seed=77)
SPEC = TaskSpec(
    run="r",
    round=1,
    artifacts=REF,
    base_model=REF,
    learning_rate=0.1,
    epochs=1,
    augmentations=2,
    augmentation=default_augmentation(),
    encoding="float32",
)


def test_there_is_image_classification_and_it_is_what_nobody_names() -> None:
    assert DEFAULT_KIND == KIND_OF_OLD_MANIFESTS == "image-classification"
    assert DEFAULT_KIND in kinds()


@pytest.mark.parametrize("name", ["", "image_classification", "contracts", "text", "../task"])
def test_an_unknown_kind_is_refused(name: str) -> None:
    with pytest.raises(TaskKindUnknownError, match="image-classification"):
        check_kind(name)
    with pytest.raises(TaskKindUnknownError):
        open_kind(name, GREY)


def test_the_default_kind_leaves_configs_and_specs_as_they_were() -> None:
    """Their digests, and with them old recordings, stay what they are."""
    config = RunConfig(training=TrainingSpec(augmentation=default_augmentation()))
    for value in (config, SPEC):
        assert "kind" not in value.model_dump_json()
        named = value.model_copy(update={"kind": "text"})
        assert type(value).model_validate_json(named.model_dump_json()) == named
    assert "optimizer" not in SPEC.model_dump_json()


def test_the_spec_of_an_old_run_still_names_its_optimizer() -> None:
    old = SPEC.model_copy(update={"optimizer": REF})
    assert TaskSpec.model_validate_json(old.model_dump_json()) == old


def test_a_shard_has_images_and_perhaps_labels() -> None:
    labels = np.arange(5) % 3
    examples, found = KIND.decode(encode_shard(IMAGES, labels))
    assert np.array_equal(examples, IMAGES)
    assert found is not None
    assert np.array_equal(found, labels)
    assert KIND.decode(encode_shard(IMAGES)).labels is None
    with pytest.raises(ShardError):
        KIND.decode(b"no shard")


def test_inputs_are_pixels_by_the_models_statistics() -> None:
    np.testing.assert_array_equal(KIND.inputs(IMAGES), to_pixel_values(IMAGES, pixel_table([0.5], [0.5])))


def test_the_first_of_equal_logits_is_the_prediction() -> None:
    assert KIND.predictions(np.array([[1, 3, 3], [-1, -2, -1]], np.float32)).tolist() == [1, 0]


def test_labelled_images_whose_prediction_differs_are_chosen_in_their_order() -> None:
    assert KIND.choose(np.array([0, 1, 1, 2, 2]), TASK.labels) == [1, 3]
    assert KIND.choose(np.array([0, 2, 1, 1, 2]), TASK.labels) == []


def test_a_step_is_the_image_itself_and_its_augmented_copies() -> None:
    copies = augment(IMAGES, np.array([1, 3]), copies=2, seed=77, spec=SPEC.augmentation)
    steps = list(KIND.batches(IMAGES, [1, 3], TASK, SPEC))
    assert [step.own.tolist() for step in steps] == [[1], [3]]
    assert [step.targets.tolist() for step in steps] == [[2, 2, 2], [1, 1, 1]]
    for step, images in zip(steps, copies, strict=True):
        np.testing.assert_array_equal(step.made, KIND.inputs(images[1:]))


def test_without_augmentation_nothing_is_made() -> None:
    (step,) = KIND.batches(IMAGES, [1], TASK, SPEC.model_copy(update={"augmentations": 0}))
    assert len(step.made) == 0
    assert step.targets.tolist() == [2]


def test_scores_are_those_of_the_losses() -> None:
    outputs = np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32)
    labels = np.array([0, 1, 2, 0, 1])
    assert KIND.scores(outputs, labels).loss == KIND.losses(outputs, labels).mean()
