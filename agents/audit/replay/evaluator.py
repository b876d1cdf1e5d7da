"""Replays the evaluator: its rules over the models' scores, of models run again or as its own details tell them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from agents.audit.replay.outcome import Objects, Replay, parameters_of
from agents.core.learning.evaluation import details_of, evaluation_of, scores_in
from agents.core.learning.scores import EvaluationDetails, ModelScores
from agents.words.events import ModelEvaluated, ModelPublished, RunStarted
from agents.words.run_config import RunDataset
from bus.errors import FedbusError, ObjectCorruptError
from bus.words.envelope import Stored
from bus.words.values import Ref

LOSS_TOLERANCE = 1e-4
"""Relative: the last digits of a logit depend on the processor. Counts of right answers have to be the same."""

HeldOut = Callable[[NDArray[np.float32]], ModelScores]
"""Runs a model with these trainable parameters, float32 [n], over the recorded held-out images."""


class EvaluatorReplay:
    """Says again what the evaluator said.

    With ``held_out`` both models are run. Without it the scores are what the details that the recording holds make of
    them: only the loss of an updated model is then taken from the evaluation itself.
    """

    def __init__(self, started: RunStarted, dataset: RunDataset, objects: Objects, held_out: HeldOut | None) -> None:
        self._started = started
        self._classes = dataset.classes
        self._objects = objects
        self._held_out = held_out
        self._models = {0: started.base_model.sha256}
        self._base: ModelScores | None = None

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

        try:
            details = EvaluationDetails.model_validate_json(self._objects.get(data.details.sha256, b""))
            base, updated = scores_in(data, details)
            # The base model was scored with the first evaluation, and not again.
            digest = self._started.base_model.sha256
            base = self._base = self._base or self._again(digest, base)
            updated = base if data.model == digest else self._again(data.model, updated)
        except (FedbusError, ValueError) as error:
            said = error.message if isinstance(error, FedbusError) else None
            outcome.differ(
                stored.sequence, "evaluator", f"the details of round {data.round}", data.details.sha256, said
            )
            return
        same("the details", details, details_of(self._classes, base, updated))
        model = self._models.get(data.round, "no model")
        again = evaluation_of(data.run, data.round, model, base, updated, data.details)
        for name in ("model", "images", "base", "updated"):
            same(f"the evaluation's {name}", getattr(data, name), getattr(again, name))

    def _again(self, digest: str, recorded: ModelScores) -> ModelScores:
        """The scores of a model that is run again, with the recorded loss where they agree; or the recorded ones.

        Raises:
            FedbusError: the recording lacks the model, or its bytes are none.
        """
        if self._held_out is None:
            return recorded
        size = self._started.base_model.size
        parameters = parameters_of(self._objects, Ref(name=f"sha256-{digest}", sha256=digest, size=size))
        if parameters.size * 4 != size:
            raise ObjectCorruptError(f"{4 * parameters.size} bytes instead of {size}")
        found = self._held_out(parameters)
        close = abs(found.loss - recorded.loss) <= LOSS_TOLERANCE * max(1.0, recorded.loss)
        return dataclasses.replace(found, loss=recorded.loss) if close else found
