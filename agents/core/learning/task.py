"""What a client does with one task: predict all examples, train on those that its kind chooses, hand back the delta.

This is the reference that the browser's trainer follows step by step: the same examples in the same order give the
same batches in every engine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from agents.core.learning.contracts import Batch, Engine, TaskKind, Tensor
from agents.words.events import TaskAssigned, UpdateMetrics
from agents.words.run_config import TaskSpec
from bus.errors import FedbusError


class TaskInputError(FedbusError):
    """A task's examples, labels and base model do not fit together."""

    code = "task_input"


@dataclass(frozen=True)
class TaskProgress:
    """How far a task is; ``loss`` is that of the latest step, none where it is no finite number."""

    phase: Literal["predict", "train"]
    images_seen: int
    mismatched_images: int = 0
    trained_images: int = 0
    loss: float | None = None


@dataclass(frozen=True)
class TaskResult:
    """What a task gives back: ``delta`` is trained minus base, float32 [n]."""

    delta: NDArray[np.float32]
    metrics: UpdateMetrics


@dataclass(frozen=True)
class TaskInputs:
    """What a task needs.

    Attributes:
        task: labels and the seed of everything random.
        spec: what the tasks of the round share.
        examples: [n, ...], the whole shard, as the kind decodes it.
        base: float32 parameters that the round starts from.
    """

    task: TaskAssigned
    spec: TaskSpec
    examples: Tensor
    base: NDArray[np.float32]


def run_task(
    given: TaskInputs,
    kind: TaskKind,
    engine: Engine,
    progress: Callable[[TaskProgress], None],
    clock: Callable[[], float],
) -> TaskResult:
    """Does one task.

    Predicts all examples at once. Then takes, ``spec.epochs`` times, the steps that the kind makes of the examples that
    it chooses. The features of an example are computed once, for the prediction and all epochs.

    Args:
        given: the task and what it is done with.
        kind: what its examples are.
        engine: the model.
        progress: called after the prediction and after each step; it may raise to give the task up.
        clock: seconds, from wherever.

    Raises:
        TaskInputError: the shard has another number of examples than the task has labels.
    """
    task, spec, examples, base = given.task, given.spec, given.examples, given.base
    if len(examples) != len(task.labels):
        raise TaskInputError(f"the task has {len(task.labels)} labels, its shard is {examples.dtype} {examples.shape}")
    started = clock()
    engine.begin(base, spec.learning_rate)
    known = engine.features(kind.inputs(examples)) if len(examples) else None
    predictions = np.zeros(0, np.int64) if known is None else kind.predictions(engine.predict(known))
    chosen = kind.choose(predictions, task.labels)
    predicted = clock()
    progress(TaskProgress("predict", len(examples), len(chosen)))

    losses: list[float] = []
    trained = 0
    if known is not None and chosen:
        for features, targets in _steps(engine, known, kind.batches(examples, chosen, task, spec), spec.epochs):
            losses.append(engine.train_step(features, targets))
            trained += len(targets)
            progress(TaskProgress("train", len(examples), len(chosen), trained, _told(losses[-1])))
    delta = engine.parameters() - base if losses else np.zeros_like(base)
    metrics = UpdateMetrics(
        predictions=tuple(int(value) for value in predictions),
        examples=sum(label is not None for label in task.labels),
        mismatched_images=len(chosen),
        trained_images=trained,
        loss_first=_told(losses[0]) if losses else None,
        loss_last=_told(losses[-1]) if losses else None,
        predict_s=predicted - started,
        train_s=clock() - predicted,
    )
    return TaskResult(delta.astype(np.float32, copy=False), metrics)


def _told(loss: float) -> float | None:
    """A loss as a message carries it: none where training diverged."""
    return loss if math.isfinite(loss) else None


def _steps(engine: Engine, known: Tensor, batches: Iterable[Batch], epochs: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Features [k + m, ...] and targets of every step of all epochs; ``known`` are the features of the whole shard."""
    steps: list[tuple[Tensor, Tensor]] = []
    for batch in batches:
        own = known[batch.own]
        features = np.concatenate([own, engine.features(batch.made)]) if len(batch.made) else own
        steps.append((features, batch.targets))
        yield steps[-1]
    for _ in range(epochs - 1):
        yield from steps
