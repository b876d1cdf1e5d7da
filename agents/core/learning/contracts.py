"""What an engine and a kind of task are: the two seams that a client's training and every evaluation go through.

An engine knows tensors: it runs and trains one copy of a model. A kind of task knows what the tensors mean: what lies
in a shard, what the outputs say, what to train on. Neither knows the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from agents.core.learning.scores import ModelScores
from agents.words.events import TaskAssigned
from agents.words.run_config import TaskSpec

Tensor = NDArray[Any]
"""Of whatever type and shape the model has; the first axis counts the examples."""


class Engine(Protocol):
    """One trainable copy of the model; calls come one at a time.

    All methods raise ``FedbusError`` for what does not fit the model.
    """

    def begin(self, base: NDArray[np.float32], learning_rate: float | None, /) -> None:
        """Sets the trainable parameters, float32 [n], and forgets whatever an earlier task left in the optimizer.

        ``learning_rate`` is that of all steps until the next ``begin``; none for one who only predicts.
        """

    def features(self, inputs: Tensor, /) -> Tensor:
        """What the trained part takes for the model's inputs [n, ...], [n, ...].

        These are the activations of the frozen part that comes first, or, without one, the inputs themselves.
        """

    def predict(self, features: Tensor, /) -> NDArray[np.float32]:
        """The model's outputs float32 [n, ...] for features [n, ...]."""

    def train_step(self, features: Tensor, targets: Tensor, /) -> float:
        """Takes one optimizer step on a batch; returns the loss before it, the mean over the batch."""

    def parameters(self) -> NDArray[np.float32]:
        """A copy of the trainable parameters, float32 [n]."""


class Shard(NamedTuple):
    """What an object with one user's data, or with held-out data, holds: examples [n, ...], labels int64 [n] if any."""

    examples: Tensor
    labels: NDArray[np.int64] | None


@dataclass(frozen=True)
class Batch:
    """What one step trains on: examples of the shard as they are, then others that were made from them.

    Attributes:
        own: places in the shard, int64 [k]; their features are known from the prediction.
        made: the model's inputs [m, ...] of further examples, without a place in the shard.
        targets: what the loss compares the outputs of all with, [k + m, ...].
    """

    own: NDArray[np.int64]
    made: Tensor
    targets: Tensor


class ModelFacts(Protocol):
    """What a kind of task may ask of the model that it is for; ``artifacts.manifest.ModelFacts`` is one."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes in the order of the outputs."""

    @property
    def mean(self) -> tuple[float, ...]:
        """What is taken from a channel's values in 0..1."""

    @property
    def std(self) -> tuple[float, ...]:
        """What they are divided by then."""


class TaskKind(Protocol):
    """One kind of task for one model; all methods are pure."""

    def decode(self, shard: bytes, /) -> Shard:
        """What the bytes of a shard hold.

        Raises:
            FedbusError: they are no shard of this kind.
        """

    def inputs(self, examples: Tensor, /) -> Tensor:
        """What the model takes for examples [n, ...], [n, ...]."""

    def predictions(self, outputs: NDArray[np.float32], /) -> NDArray[np.int64]:
        """What the outputs [n, ...] say, comparable with labels, int64 [n]."""

    def choose(self, predictions: NDArray[np.int64], labels: Sequence[int | None], /) -> list[int]:
        """The places of the examples to train on, in the order of the steps; a label that is none was dropped."""

    def batches(
        self, examples: Tensor, chosen: Sequence[int], task: TaskAssigned, spec: TaskSpec, /
    ) -> Iterator[Batch]:
        """The steps of one epoch, one for each of the chosen examples."""

    def losses(self, outputs: NDArray[np.float32], labels: NDArray[np.int64], /) -> NDArray[np.float64]:
        """Each example's loss, float64 [n], finite: what training lowers, without smoothing and the like."""

    def scores(self, outputs: NDArray[np.float32], labels: NDArray[np.int64], /) -> ModelScores:
        """How well outputs [n, ...] meet labels [n], n >= 1."""
