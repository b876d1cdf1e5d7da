"""Compares two models on the same labelled images: each one's metrics, and where they differ."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from agents.core.learning.contracts import TaskKind
from agents.core.learning.scores import ClassScores
from agents.words.events import Score
from bus.words.values import Frozen


class ModelResult(Frozen):
    """One model on the images."""

    name: str
    score: Score
    by_class: ClassScores


class Comparison(Frozen):
    """Two models on the same images; the last five fields count images."""

    classes: tuple[str, ...]
    images: int
    a: ModelResult
    b: ModelResult
    both_right: int
    only_a_right: int
    only_b_right: int
    both_wrong: int
    same_prediction: int


def compare(
    names: tuple[str, str],
    kind: TaskKind,
    outputs: tuple[NDArray[np.float32], NDArray[np.float32]],
    labels: NDArray[np.int64],
    classes: Sequence[str],
) -> Comparison:
    """The comparison of two models with outputs [n, ...] each for images with labels [n], n >= 1."""
    first, second = (kind.predictions(each) for each in outputs)
    a, b = first == labels, second == labels
    scores = [kind.scores(each, labels) for each in outputs]
    results = [
        ModelResult(name=name, score=each.score, by_class=each.by_class)
        for name, each in zip(names, scores, strict=True)
    ]
    return Comparison(
        classes=tuple(classes),
        images=len(labels),
        a=results[0],
        b=results[1],
        both_right=int(np.sum(a & b)),
        only_a_right=int(np.sum(a & ~b)),
        only_b_right=int(np.sum(~a & b)),
        both_wrong=int(np.sum(~a & ~b)),
        same_prediction=int(np.sum(first == second)),
    )
