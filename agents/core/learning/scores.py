"""Metrics of a classifier on labelled images, from its logits: accuracy, cross-entropy, per class, confusion matrix."""

from __future__ import annotations

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


def score(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> Score:
    """Accuracy and mean cross-entropy (no label smoothing, float64) of logits [n, classes] for labels [n], n >= 1.

    A logit that is not finite counts as the lowest of its row.
    """
    scores = _finite(logits)
    shifted = scores - scores.max(axis=1, keepdims=True)
    own = shifted[np.arange(len(labels)), labels]
    losses = np.minimum(np.log(np.exp(shifted).sum(axis=1)) - own, MAX_LOSS)
    accuracy = np.mean(scores.argmax(axis=1) == labels)
    return Score(accuracy=float(accuracy), loss=max(0.0, float(losses.mean())))


def by_class(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> ClassScores:
    """Per-class accuracy and confusion matrix of logits [n, classes] for labels [n]."""
    classes = logits.shape[1]
    cells = np.bincount(labels * classes + _finite(logits).argmax(axis=1), minlength=classes * classes)
    confusion = cells.reshape(classes, classes)
    images, right = confusion.sum(axis=1).tolist(), confusion.diagonal().tolist()
    return ClassScores(
        per_class=tuple(hit / count if count else None for hit, count in zip(right, images, strict=True)),
        confusion=tuple(tuple(row) for row in confusion.tolist()),
    )


def _finite(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    wide = logits.astype(np.float64)
    return np.where(np.isfinite(wide), wide, _LOWEST)
