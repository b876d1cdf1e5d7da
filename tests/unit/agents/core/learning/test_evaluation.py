"""What the evaluator says, from scores and back."""

from __future__ import annotations

import pytest

from agents.core.learning.evaluation import details_of, evaluation_of, scores_in
from agents.core.learning.scores import scores_of_counts
from tests.builders import ANY_REF

BASE = scores_of_counts([[3, 1], [2, 2]], 0.5)
UPDATED = scores_of_counts([[4, 0], [1, 3]], 0.25)
CLASSES = ("a", "b")


def test_an_evaluation_says_both_models_accuracy_and_loss() -> None:
    said = evaluation_of("r", 2, "0" * 64, BASE, UPDATED, ANY_REF)
    assert (said.run, said.round, said.images) == ("r", 2, 8)
    assert (said.base.accuracy, said.base.loss) == (5 / 8, 0.5)
    assert (said.updated.accuracy, said.updated.loss) == (7 / 8, 0.25)


def test_scores_come_back_from_what_was_said_of_them() -> None:
    said = evaluation_of("r", 2, "0" * 64, BASE, UPDATED, ANY_REF)
    assert scores_in(said, details_of(CLASSES, BASE, UPDATED)) == (BASE, UPDATED)


@pytest.mark.parametrize("confusion", [((1, 2),), ((1,), (2,)), ((0, 0), (0, 0)), ()])
def test_details_that_count_nothing_are_refused(confusion: tuple[tuple[int, ...], ...]) -> None:
    said = evaluation_of("r", 2, "0" * 64, BASE, UPDATED, ANY_REF)
    details = details_of(CLASSES, BASE, UPDATED)
    wrong = details.base.model_copy(update={"confusion": confusion})
    with pytest.raises(ValueError, match="square"):
        scores_in(said, details.model_copy(update={"base": wrong}))
