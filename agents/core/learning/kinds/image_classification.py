"""Image classification: train where prediction and label differ, on the image and augmented copies of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from agents.core.learning.augment import augment
from agents.core.learning.contracts import Batch, ModelFacts, Shard
from agents.core.learning.scores import ModelScores, losses, scores
from agents.words.events import TaskAssigned
from agents.words.run_config import TaskSpec
from artifacts.pixels import pixel_table, to_pixel_values
from data.errors import ShardError
from data.shards import decode_shard


def open_kind(model: ModelFacts) -> ImageClassification:
    """This kind for a model of images."""
    return ImageClassification(model)


class ImageClassification:
    """Examples are uint8 [n, height, width, channels], inputs float32 [n, channels, height, width], outputs logits."""

    def __init__(self, model: ModelFacts) -> None:
        self._table = pixel_table(model.mean, model.std)

    def decode(self, shard: bytes) -> Shard:
        """The images, and the labels if there are any.

        Raises:
            ShardError: the bytes are no shard of images, or their images have other channels than the model's.
        """
        images, labels = decode_shard(shard)
        if images.shape[3] != len(self._table):
            raise ShardError(f"images of {images.shape[3]} channels for a model of {len(self._table)}")
        return Shard(images, labels)

    def inputs(self, examples: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Normalised pixels."""
        return to_pixel_values(examples, self._table)

    def predictions(self, outputs: NDArray[np.float32]) -> NDArray[np.int64]:
        """The class with the largest logit, the first of equals."""
        return np.asarray(np.argmax(outputs, axis=1), np.int64)

    def choose(self, predictions: NDArray[np.int64], labels: Sequence[int | None]) -> list[int]:
        """The labelled images whose prediction differs from their label, in the order of the shard."""
        return [at for at, label in enumerate(labels) if label is not None and int(predictions[at]) != label]

    def batches(
        self, examples: NDArray[np.uint8], chosen: Sequence[int], task: TaskAssigned, spec: TaskSpec
    ) -> Iterator[Batch]:
        """For each chosen image itself and its ``spec.augmentations`` copies, all with its label."""
        batches = augment(
            examples, np.array(chosen, np.int64), copies=spec.augmentations, seed=task.seed, spec=spec.augmentation
        )
        for at, images in zip(chosen, batches, strict=True):
            targets = np.full(len(images), task.labels[at], np.int64)
            yield Batch(np.array([at]), self.inputs(images[1:]), targets)

    def losses(self, outputs: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.float64]:
        """The cross-entropy of each image, nats."""
        return losses(outputs, labels)

    def scores(self, outputs: NDArray[np.float32], labels: NDArray[np.int64]) -> ModelScores:
        """Confusion matrix and mean cross-entropy."""
        return scores(outputs, labels)
