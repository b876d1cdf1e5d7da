"""Replays the evaluator: from the models and images where the recording holds them, else from its own details."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from agents.audit.replay.outcome import Objects, Replay, parameters_of
from agents.core.learning.scores import ClassScores, EvaluationDetails, by_class, score
from agents.words.events import ModelEvaluated, ModelPublished, RunStarted, Score
from agents.words.run_config import RunDataset
from bus.errors import FedbusError, ObjectCorruptError
from bus.words.envelope import Stored
from bus.words.values import Ref

LOSS_TOLERANCE = 1e-4
"""Relative: the last digits of a logit depend on the processor. Counts of right answers have to be the same."""


@dataclass(frozen=True)
class HeldOut:
    """The held-out images, ready to be looked at.

    Attributes:
        labels: true classes, int64 [n].
        logits: the logits float32 [n, classes] of all images under the trainable parameters float32 [parameters].
    """

    labels: NDArray[np.int64]
    logits: Callable[[NDArray[np.float32]], NDArray[np.float32]]


class EvaluatorReplay:
    """Computes the recorded scores again.

    With ``held_out`` both models are run. Without it the scores are derived from the details that the recording holds:
    the accuracy from the confusion matrices, and the base model's scores from round to round.
    """

    def __init__(self, started: RunStarted, dataset: RunDataset, objects: Objects, held_out: HeldOut | None) -> None:
        self._started = started
        self._classes = dataset.classes
        self._objects = objects
        self._held_out = held_out
        self._models = {0: started.base_model.sha256}
        self._first_base: Score | None = None
        self._logits: dict[str, NDArray[np.float32]] = {}

    def take(self, stored: Stored, outcome: Replay) -> None:
        """Compares one evaluation with what its models and details say."""
        data = stored.event.data
        if isinstance(data, ModelPublished):
            self._models.setdefault(data.round, data.model.sha256)
        if not isinstance(data, ModelEvaluated):
            return
        outcome.checked["evaluator"] += 1

        def same(what: str, recorded: object, replayed: object) -> None:
            outcome.compare(stored.sequence, "evaluator", f"{what} of round {data.round}", recorded, replayed)

        same("the model", data.model, self._models.get(data.round))
        self._first_base = self._first_base or data.base
        same("the base model's score", data.base, self._first_base)
        try:
            details = EvaluationDetails.model_validate_json(self._objects.get(data.details.sha256, b""))
        except ValidationError:
            outcome.differ(
                stored.sequence, "evaluator", f"the details of round {data.round}", data.details.sha256, None
            )
            return
        same("the classes", details.classes, self._classes)
        for name, said, scores in (
            ("the base model", data.base, details.base),
            ("the updated model", data.updated, details.updated),
        ):
            same(f"the images of {name}", data.images, _images(scores))
            same(f"the accuracy of {name}", said.accuracy, _accuracy(scores))
            same(f"the accuracy by class of {name}", scores.per_class, _per_class(scores))
        if self._held_out is not None:
            for name, digest, said, scores in (
                ("the base model", self._started.base_model.sha256, data.base, details.base),
                ("the updated model", data.model, data.updated, details.updated),
            ):
                try:
                    logits = self._run(digest, self._held_out)
                except FedbusError as error:
                    same(f"the bytes of {name}", digest, error.message)
                    continue
                again = score(logits, self._held_out.labels)
                same(f"the confusion matrix of {name}", scores, by_class(logits, self._held_out.labels))
                if abs(again.loss - said.loss) > LOSS_TOLERANCE * max(1.0, said.loss):
                    same(f"the loss of {name}", said.loss, again.loss)

    def _run(self, digest: str, held_out: HeldOut) -> NDArray[np.float32]:
        base = self._started.base_model.sha256
        if digest not in self._logits:
            size = self._started.base_model.size
            ref = Ref(name=f"sha256-{digest}", sha256=digest, size=size)
            parameters = parameters_of(self._objects, ref)
            if parameters.size * 4 != size:
                raise ObjectCorruptError(f"{4 * parameters.size} bytes instead of {size}")
            self._logits = {key: logits for key, logits in self._logits.items() if key == base}
            self._logits[digest] = held_out.logits(parameters)
        return self._logits[digest]


def _images(scores: ClassScores) -> int:
    return sum(sum(row) for row in scores.confusion)


def _accuracy(scores: ClassScores) -> float:
    right = sum(row[index] for index, row in enumerate(scores.confusion) if index < len(row))
    return right / max(1, _images(scores))


def _per_class(scores: ClassScores) -> tuple[float | None, ...]:
    images = [sum(row) for row in scores.confusion]
    return tuple(
        row[index] / count if count and index < len(row) else None
        for index, (row, count) in enumerate(zip(scores.confusion, images, strict=True))
    )
