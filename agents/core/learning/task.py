"""What a client does with one task: predict all images, train on each mismatch, hand back the delta and its metrics.

This is the reference that the browser's trainer follows step by step: the same images in the same order give the same
batches in every engine.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from agents.core.learning.augment import augment
from agents.words.events import TaskAssigned, UpdateMetrics
from agents.words.run_config import TaskSpec
from artifacts.pixels import to_pixel_values
from bus.errors import FedbusError


class TaskInputError(FedbusError):
    """A task's images, labels and base model do not fit together."""

    code = "task_input"


class Engine(Protocol):
    """One trainable copy of the model; calls come one at a time."""

    @property
    def pixel_table(self) -> NDArray[np.float32]:
        """What a pixel's value becomes, float32 [channels, 256]."""

    def begin(self, base: NDArray[np.float32]) -> None:
        """Sets the trainable parameters, float32 [n], and forgets whatever an earlier task left in the optimizer."""

    def features(self, pixel_values: NDArray[np.float32]) -> NDArray[np.float32]:
        """What the trained part takes for pixel values float32 [n, channels, height, width], float32 [n, ...].

        These are the activations of the frozen part that comes first, or, without one, the pixel values themselves.
        """

    def predict(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits float32 [n, classes] for features float32 [n, ...]."""

    def train_step(self, features: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
        """Takes one optimizer step on a batch; returns the loss before it."""

    def parameters(self) -> NDArray[np.float32]:
        """A copy of the trainable parameters, float32 [n]."""


@dataclass(frozen=True)
class TaskProgress:
    """How far a task is; ``loss`` is that of the latest step."""

    phase: Literal["predict", "train"]
    images_seen: int
    mismatched_images: int = 0
    trained_images: int = 0
    loss: float | None = None


@dataclass(frozen=True)
class TaskResult:
    """What a task gives back: ``delta`` is trained minus base, float32 [n]."""

    delta: NDArray[np.float32]
    metrics: UpdateMetrics


def run_task(
    task: TaskAssigned,
    spec: TaskSpec,
    images: NDArray[np.uint8],
    base: NDArray[np.float32],
    engine: Engine,
    progress: Callable[[TaskProgress], None],
) -> TaskResult:
    """Does one task.

    Predicts all images in one batch (the first of equal logits wins). Then, ``spec.epochs`` times and in the order of
    the shard, takes one step for each labelled image whose prediction differs from its label, on the original and its
    ``spec.augmentations`` copies. The features of an image are computed once, for the prediction and all epochs.

    Args:
        task: labels and the seed of the augmentation.
        spec: what the tasks of the round share.
        images: uint8 [n, height, width, channels], the whole shard.
        base: float32 parameters that the round starts from.
        engine: the model.
        progress: called after the prediction and after each step; it may raise to give the task up.

    Raises:
        TaskInputError: the shard has another number of images than the task has labels.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or len(images) != len(task.labels):
        raise TaskInputError(f"the task has {len(task.labels)} labels, its shard is {images.dtype} {images.shape}")
    started = time.monotonic()
    engine.begin(base)
    known = engine.features(to_pixel_values(images, engine.pixel_table)) if len(images) else None
    predictions = _predict(engine, known)
    wrong = [index for index, label in enumerate(task.labels) if label is not None and int(predictions[index]) != label]
    predicted = time.monotonic()
    progress(TaskProgress("predict", len(images), len(wrong)))

    losses: list[float] = []
    if wrong:
        batches = augment(
            images, np.array(wrong, np.int64), copies=spec.augmentations, seed=task.seed, spec=spec.augmentation
        )
        assert known is not None
        features: dict[int, NDArray[np.float32]] = {}
        for _ in range(spec.epochs):
            for index, batch in zip(wrong, batches, strict=True):
                if index not in features:
                    features[index] = _features(engine, known[index : index + 1], batch[1:])
                label = np.full(len(batch), task.labels[index], np.int64)
                losses.append(engine.train_step(features[index], label))
                trained = len(losses) * (1 + spec.augmentations)
                progress(TaskProgress("train", len(images), len(wrong), trained, losses[-1]))
    delta = engine.parameters() - base if losses else np.zeros_like(base)
    metrics = UpdateMetrics(
        predictions=tuple(int(value) for value in predictions),
        examples=sum(label is not None for label in task.labels),
        mismatched_images=len(wrong),
        trained_images=len(losses) * (1 + spec.augmentations),
        loss_first=_told(losses[0]) if losses else None,
        loss_last=_told(losses[-1]) if losses else None,
        predict_s=predicted - started,
        train_s=time.monotonic() - predicted,
    )
    return TaskResult(delta.astype(np.float32, copy=False), metrics)


def _told(loss: float) -> float | None:
    """A loss as a message carries it: none where training diverged."""
    return loss if math.isfinite(loss) else None


def _features(engine: Engine, original: NDArray[np.float32], copies: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Features of a batch whose original is known from the prediction, float32 [1 + copies, ...]."""
    if len(copies) == 0:
        return original
    return np.concatenate([original, engine.features(to_pixel_values(copies, engine.pixel_table))])


def _predict(engine: Engine, features: NDArray[np.float32] | None) -> NDArray[np.int64]:
    if features is None:
        return np.zeros(0, np.int64)
    return np.asarray(np.argmax(engine.predict(features), axis=1), np.int64)
