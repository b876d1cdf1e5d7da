"""Does the tasks: fetches what they need and trains, in a thread of its own so that the connection stays alive."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from agents.client.objects import ObjectCache
from agents.core.learning.encodings import encode_update
from agents.core.learning.task import TaskProgress, TaskResult, run_task
from agents.words.events import TaskAssigned, UpdateMetrics
from agents.words.run_config import TaskSpec
from artifacts.manifest import ArtifactManifest
from artifacts.ort_training import NativeTrainer
from artifacts.pixels import pixel_table
from bus.errors import FedbusError
from data.shards import decode_shard

Progress = Callable[[TaskProgress], None]
Model = TypeVar("Model", bound=BaseModel)


class MalformedObjectError(FedbusError):
    """An object that a task names is not what it should be."""

    code = "malformed_object"


class TaskGivenUpError(FedbusError):
    """The task was revoked, or the client stops."""

    code = "task_given_up"


@dataclass(frozen=True)
class Finished:
    """A task that is done: its encoded update and its metrics."""

    data: bytes
    metrics: UpdateMetrics


class Trainer(Protocol):
    """What does tasks; one at a time."""

    engine: str

    async def prepare(self, task: TaskAssigned) -> None:
        """Fetches what the task needs, ahead of its turn."""

    async def run(self, task: TaskAssigned, progress: Progress) -> Finished:
        """Does the task.

        Raises:
            FedbusError: it cannot be done.
        """


class NativeEngine:
    """``NativeTrainer`` as ``run_task`` wants it."""

    def __init__(self, trainer: NativeTrainer) -> None:
        self._trainer = trainer
        model = trainer.manifest.model
        self.pixel_table = pixel_table(model.mean, model.std)

    def begin(self, base: NDArray[np.float32]) -> None:
        """Sets the parameters and forgets the optimizer's state."""
        self._trainer.reset_optimizer()
        self._trainer.load_parameters(base)

    def features(self, pixel_values: NDArray[np.float32]) -> NDArray[np.float32]:
        """What the trained part takes, float32 [n, ...]."""
        return self._trainer.features(pixel_values)

    def predict(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits float32 [n, classes]."""
        return self._trainer.predict(features)

    def train_step(self, features: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
        """One step; the loss before it."""
        return self._trainer.train_step(features, labels)

    def parameters(self) -> NDArray[np.float32]:
        """A copy of the parameters."""
        return self._trainer.parameters()


class OrtTrainer:
    """Trains with onnxruntime; keeps its session from task to task while artifacts and optimizer stay the same."""

    engine = "onnxruntime-training native"

    def __init__(self, objects: ObjectCache, *, threads: int = 1) -> None:
        self._objects = objects
        self._threads = threads
        self._specs: dict[str, TaskSpec] = {}
        self._artifacts = ""
        self._optimizer = ""
        self._trainer: NativeTrainer | None = None
        # One session: tasks queue for it even when an earlier one is being given up.
        self._session = threading.Lock()

    async def prepare(self, task: TaskAssigned) -> None:
        """Fetches spec, base model and shard."""
        spec = await self._spec(task)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._objects.get(spec.base_model))
            group.create_task(self._objects.get(task.shard))

    async def run(self, task: TaskAssigned, progress: Progress) -> Finished:
        """Does the task; see ``Trainer.run``."""
        spec = await self._spec(task)
        trainer = await self._opened(spec)
        images, _ = decode_shard(await self._objects.get(task.shard))
        base = np.frombuffer(await self._objects.get(spec.base_model), "<f4").astype(np.float32)

        def work() -> Finished:
            with self._session:
                result: TaskResult = run_task(task, spec, images, base, NativeEngine(trainer), progress)
                return Finished(encode_update(result.delta, spec.encoding), result.metrics)

        return await asyncio.to_thread(work)

    async def _spec(self, task: TaskAssigned) -> TaskSpec:
        key = task.spec.sha256
        if key not in self._specs:
            self._specs[key] = parsed(TaskSpec, await self._objects.get(task.spec))
        return self._specs[key]

    async def _opened(self, spec: TaskSpec) -> NativeTrainer:
        if self._trainer is None or self._artifacts != spec.artifacts.sha256:
            manifest = parsed(ArtifactManifest, await self._objects.get(spec.artifacts))
            paths = {role: await self._objects.path(file.ref) for role, file in manifest.files.for_training()}
            self._trainer = await asyncio.to_thread(NativeTrainer, manifest, paths, threads=self._threads)
            self._artifacts, self._optimizer = spec.artifacts.sha256, ""
        if self._optimizer != spec.optimizer.sha256:
            await asyncio.to_thread(self._trainer.set_optimizer, await self._objects.get(spec.optimizer))
            self._optimizer = spec.optimizer.sha256
        return self._trainer


def parsed(kind: type[Model], data: bytes) -> Model:
    """The object that the JSON in ``data`` states.

    Raises:
        MalformedObjectError: it states something else.
    """
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        raise MalformedObjectError(f"not a {kind.__name__}: {error.errors(include_url=False)[0]['msg']}") from None


class SyntheticTrainer:
    """Trains nothing: predicts every label right and sends zeros. What remains is the cost of fedbus itself."""

    engine = "synthetic native"

    def __init__(self, objects: ObjectCache) -> None:
        self._objects = objects
        self._updates: dict[str, bytes] = {}

    async def prepare(self, task: TaskAssigned) -> None:
        """Fetches the spec, which says how large an update is."""
        key = task.spec.sha256
        if key not in self._updates:
            spec = parsed(TaskSpec, await self._objects.get(task.spec))
            self._updates[key] = encode_update(np.zeros(spec.base_model.size // 4, np.float32), spec.encoding)

    async def run(self, task: TaskAssigned, progress: Progress) -> Finished:
        """Answers at once."""
        await self.prepare(task)
        metrics = UpdateMetrics(
            predictions=tuple(label or 0 for label in task.labels),
            examples=sum(label is not None for label in task.labels),
            mismatched_images=0,
            trained_images=0,
        )
        return Finished(self._updates[task.spec.sha256], metrics)
