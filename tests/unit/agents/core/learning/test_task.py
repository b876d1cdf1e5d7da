"""One task from prediction to delta, with an engine that writes down what it is given."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from numpy.typing import NDArray

from agents.core.learning.augment import augment, default_augmentation
from agents.core.learning.kinds import open_kind
from agents.core.learning.task import TaskInputError, TaskInputs, TaskProgress, TaskResult, run_task
from agents.words.events import TaskAssigned
from agents.words.run_config import TaskSpec
from artifacts.pixels import pixel_table, to_pixel_values
from bus.words.values import Ref
from tests.unit.agents.core.learning.models import GREY

REF = Ref(name="sha256-" + "0" * 64, size=12, sha256="0" * 64)
IMAGES = np.random.default_rng(1).integers(0, 256, (5, 6, 6, 1), dtype=np.uint8)
BASE = np.array([1, 2, 3], np.float32)
KIND = open_kind("image-classification", GREY)


class WritingEngine:
    """Predicts class 1 for every image (classes 1 and 2 tie) and adds one half to each parameter at each step."""

    def __init__(self) -> None:
        self.rate: float | None = None
        self.predicted: list[NDArray[np.float32]] = []
        self.steps: list[tuple[NDArray[np.float32], list[int]]] = []
        self.values = np.full(3, np.nan, np.float32)

    def begin(self, base: NDArray[np.float32], learning_rate: float | None) -> None:
        self.values, self.rate = base.copy(), learning_rate

    def features(self, pixel_values: NDArray[np.float32]) -> NDArray[np.float32]:
        return pixel_values

    def predict(self, pixel_values: NDArray[np.float32]) -> NDArray[np.float32]:
        self.predicted.append(pixel_values)
        return np.tile(np.array([0, 5, 5], np.float32), (len(pixel_values), 1))

    def train_step(self, pixel_values: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
        self.steps.append((pixel_values, labels.tolist()))
        self.values += np.float32(0.5)
        return float(len(self.steps))

    def parameters(self) -> NDArray[np.float32]:
        return self.values.copy()


def do(labels: tuple[int | None, ...], *, epochs: int = 1, augmentations: int = 2) -> tuple[WritingEngine, TaskResult]:
    engine = WritingEngine()
    task = TaskAssigned(run="r", round=1, user="u", shard=REF, labels=labels, spec=REF, seed=77)
    given = TaskInputs(task, a_spec(epochs, augmentations), IMAGES, BASE)
    return engine, run_task(given, KIND, engine, lambda _: None, itertools.count().__next__)


def a_spec(epochs: int, augmentations: int) -> TaskSpec:
    return TaskSpec(
        run="r",
        round=1,
        artifacts=REF,
        base_model=REF,
        learning_rate=0.1,
        epochs=epochs,
        augmentations=augmentations,
        augmentation=default_augmentation(),
        encoding="float32",
    )


def test_every_image_is_predicted_in_one_batch_and_the_first_of_equal_logits_wins() -> None:
    engine, result = do((1, 1, None, 1, 1))
    assert [len(batch) for batch in engine.predicted] == [5]
    assert result.metrics.predictions == (1, 1, 1, 1, 1)


def test_each_mismatch_is_one_step_on_the_original_and_its_copies_in_shard_order() -> None:
    engine, result = do((0, 1, None, 2, 1))
    expected = augment(IMAGES, np.array([0, 3]), copies=2, seed=77, spec=default_augmentation())
    assert [labels for _, labels in engine.steps] == [[0, 0, 0], [2, 2, 2]]
    for (batch, _), images in zip(engine.steps, expected, strict=True):
        np.testing.assert_array_equal(batch, to_pixel_values(images, pixel_table([0.5], [0.5])))
    assert result.delta.tolist() == [1, 1, 1]
    assert result.delta.dtype == np.float32


def test_epochs_repeat_the_same_batches() -> None:
    engine, result = do((0, 1, None, 2, 1), epochs=3)
    assert len(engine.steps) == 6
    np.testing.assert_array_equal(engine.steps[0][0], engine.steps[2][0])
    assert (result.metrics.trained_images, result.metrics.loss_first, result.metrics.loss_last) == (18, 1.0, 6.0)


def test_metrics_count_labelled_mismatched_and_trained_images() -> None:
    metrics = do((0, 1, None, 2, 1))[1].metrics
    assert (metrics.examples, metrics.mismatched_images, metrics.trained_images) == (4, 2, 6)


def test_a_task_without_a_mismatch_trains_nothing_and_its_delta_is_zero() -> None:
    engine, result = do((1, None, 1, 1, 1))
    assert engine.steps == []
    assert result.delta.tolist() == [0, 0, 0]
    assert (result.metrics.loss_first, result.metrics.trained_images) == (None, 0)


def test_without_augmentation_a_step_sees_the_original_alone() -> None:
    engine, result = do((0, 1, 1, 1, 1), augmentations=0)
    assert [len(batch) for batch, _ in engine.steps] == [1]
    assert result.metrics.trained_images == 1


def test_a_shard_of_another_length_than_the_labels_is_refused() -> None:
    with pytest.raises(TaskInputError, match="4 labels"):
        do((1, 1, 1, 1))


def test_the_progress_callback_can_give_the_task_up() -> None:
    class GivenUpError(Exception):
        pass

    def stop(progress: TaskProgress) -> None:
        if progress.phase == "train":
            raise GivenUpError

    engine = WritingEngine()
    task = TaskAssigned(run="r", round=1, user="u", shard=REF, labels=(0, 0, 0, 0, 0), spec=REF, seed=1)
    with pytest.raises(GivenUpError):
        run_task(TaskInputs(task, a_spec(1, 2), IMAGES, BASE), KIND, engine, stop, itertools.count().__next__)
    assert len(engine.steps) == 1


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_no_number_is_told_as_none_in_progress_and_metrics(loss: float) -> None:
    class Diverging(WritingEngine):
        def train_step(self, pixel_values: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
            super().train_step(pixel_values, labels)
            return loss

    told: list[TaskProgress] = []
    task = TaskAssigned(run="r", round=1, user="u", shard=REF, labels=(0, 0, 0, 0, 0), spec=REF, seed=1)
    given = TaskInputs(task, a_spec(1, 2), IMAGES, BASE)
    result = run_task(given, KIND, Diverging(), told.append, itertools.count().__next__)
    assert [one.loss for one in told] == [None] * 6
    assert (result.metrics.loss_first, result.metrics.loss_last) == (None, None)


def test_the_learning_rate_of_the_round_is_a_number_in_its_spec() -> None:
    engine, _ = do((0, 1, None, 2, 1))
    assert engine.rate == 0.1


def test_times_come_from_the_clock_that_is_given() -> None:
    metrics = do((0, 1, None, 2, 1))[1].metrics
    assert (metrics.predict_s, metrics.train_s) == (1, 1)
