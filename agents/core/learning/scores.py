"""Metrics of a classifier on labelled images, from its logits: accuracy, cross-entropy, per class, confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from agents.core.learning.confusion import ConfusionCounts
from agents.words.events import Score
from bus.words.values import Frozen

MAX_LOSS = 1e4
"""Cross-entropy of one image is cut off here, nats, so that a model that diverged still has a finite loss."""
_LOWEST = -2.0 * float(np.finfo(np.float32).max)


class ClassScores(Frozen):
    """A model's results by class.

    Attributes:
        per_class: accuracy of each class in order, a fraction of 1; none for a class without images.
        confusion: numbers of images, ``confusion[true][predicted]``.
    """

    per_class: tuple[Annotated[float, Field(ge=0, le=1)] | None, ...]
    confusion: ConfusionCounts


class EvaluationDetails(Frozen):
    """The object that ``model.evaluated`` refers to: both models' results by class."""

    classes: tuple[str, ...]
    base: ClassScores
    updated: ClassScores


@dataclass(frozen=True)
class ModelScores:
    """A model on labelled images: all but the mean loss follows from how often which class was taken for which."""

    by_class: ClassScores
    loss: float

    @property
    def images(self) -> int:
        """How many there were."""
        return sum(map(sum, self.by_class.confusion))

    @property
    def score(self) -> Score:
        """Accuracy and loss."""
        right = sum(row[at] for at, row in enumerate(self.by_class.confusion))
        return Score(accuracy=right / self.images, loss=self.loss)


def scores(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> ModelScores:
    """Confusion matrix and mean cross-entropy of logits [n, classes] for labels [n], n >= 1.

    A logit that is not finite counts as the lowest of its row.
    """
    classes = logits.shape[1]
    cells = np.bincount(labels * classes + _finite(logits).argmax(axis=1), minlength=classes * classes)
    confusion = cells.reshape(classes, classes).tolist()
    return scores_of_counts(confusion, max(0.0, float(losses(logits, labels).mean())))


def scores_of_counts(confusion: Sequence[Sequence[int]], loss: float) -> ModelScores:
    """The scores of a model with this square matrix ``[true][predicted]`` of numbers of images, and this mean loss."""
    images = [sum(row) for row in confusion]
    return ModelScores(
        ClassScores(
            per_class=tuple(
                row[at] / count if count else None
                for at, (row, count) in enumerate(zip(confusion, images, strict=True))
            ),
            confusion=tuple(tuple(row) for row in confusion),
        ),
        loss,
    )


def losses(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Each image's cross-entropy, nats, of logits [n, classes] for labels [n]: no label smoothing, in float64."""
    finite = _finite(logits)
    shifted = finite - finite.max(axis=1, keepdims=True)
    own = shifted[np.arange(len(labels)), labels]
    return np.asarray(np.minimum(np.log(np.exp(shifted).sum(axis=1)) - own, MAX_LOSS))


def _finite(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    wide = logits.astype(np.float64)
    return np.where(np.isfinite(wide), wide, _LOWEST)
