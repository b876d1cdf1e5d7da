"""What the evaluator says of a model: ``model.evaluated`` and the details that it refers to, from two models' scores.

The base model is scored once, with round 0, and its scores stand in every later evaluation of the run.
"""

from __future__ import annotations

from agents.core.learning.scores import EvaluationDetails, ModelScores, scores_of_counts
from agents.words.events import ModelEvaluated
from bus.words.values import Ref


def details_of(classes: tuple[str, ...], base: ModelScores, updated: ModelScores) -> EvaluationDetails:
    """The details of an evaluation."""
    return EvaluationDetails(classes=classes, base=base.by_class, updated=updated.by_class)


def evaluation_of(
    run: str, number: int, model: str, base: ModelScores, updated: ModelScores, details: Ref
) -> ModelEvaluated:
    """The evaluation of the model with this digest, that of round ``number``; its details lie at ``details``."""
    return ModelEvaluated(
        run=run,
        round=number,
        model=model,
        images=updated.images,
        base=base.score,
        updated=updated.score,
        details=details,
    )


def scores_in(said: ModelEvaluated, details: EvaluationDetails) -> tuple[ModelScores, ModelScores]:
    """The scores (base, updated) that an evaluation tells of.

    Raises:
        ValueError: the details are those of no model: a matrix that is not square, or counts no image.
    """
    both = []
    for classes, score in ((details.base, said.base), (details.updated, said.updated)):
        confusion = classes.confusion
        if any(len(row) != len(confusion) for row in confusion) or not any(map(any, confusion)):
            raise ValueError("a confusion matrix is square and counts images")
        both.append(scores_of_counts(confusion, score.loss))
    return both[0], both[1]
