"""Runs a model over held-out examples: what the evaluator, its replay and ``fedbus evaluate`` share."""

from __future__ import annotations

import asyncio

import numpy as np
from numpy.typing import NDArray

from agents.core.learning.contracts import Engine, TaskKind, Tensor
from agents.core.learning.scores import ModelScores

BATCH_VALUES = 1 << 17
"""Values of one batch of examples: about as fast as any, and small in memory for large pictures."""


class HeldOutScorer:
    """One model's engine and the examples to try it on; not safe for use by several tasks at once.

    Attributes:
        labels: true classes, int64 [n].
        classes: their names.
    """

    def __init__(
        self, engine: Engine, kind: TaskKind, examples: Tensor, labels: NDArray[np.int64], *, classes: tuple[str, ...]
    ) -> None:
        self.classes = classes
        self._engine = engine
        self._kind = kind
        self._examples = examples
        self.labels = labels

    async def scores(self, parameters: NDArray[np.float32]) -> ModelScores:
        """How well the model does under these trainable parameters."""
        return self._kind.scores(await self.outputs(parameters), self.labels)

    async def outputs(self, parameters: NDArray[np.float32]) -> NDArray[np.float32]:
        """Outputs float32 [n, ...] of all examples under these trainable parameters."""
        await asyncio.to_thread(self._engine.begin, parameters, None)
        size = max(1, BATCH_VALUES // self._examples[0].size)
        starts = range(0, len(self._examples), size)
        # A batch at a time, so that heartbeats go on between the batches of a large model.
        return np.concatenate([await asyncio.to_thread(self._predict, self._examples[i : i + size]) for i in starts])

    def _predict(self, examples: Tensor) -> NDArray[np.float32]:
        return self._engine.predict(self._engine.features(self._kind.inputs(examples)))
