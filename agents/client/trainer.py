"""Does the tasks: fetches what they need and trains, in a thread of its own so that the connection stays alive."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from pydantic import BaseModel, ValidationError

from agents.client.objects import ObjectCache
from agents.core.learning.contracts import Engine
from agents.core.learning.encodings import encode_update
from agents.core.learning.kinds import check_kind, open_kind
from agents.core.learning.task import TaskInputs, TaskProgress, run_task
from agents.engines import choose, open_engine
from agents.runtime.tasks import together
from agents.words.events import Platform, TaskAssigned, UpdateMetrics
from agents.words.run_config import TaskSpec
from artifacts.manifest import ArtifactManifest
from bus.errors import FedbusError
from bus.words.problems import what_is_wrong

PLATFORM: Platform = "native"
log = logging.getLogger(__name__)
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

    @property
    def engine(self) -> str:
        """What it trains with, as the gateway is told."""

    async def prepare(self, task: TaskAssigned) -> None:
        """Fetches what the task needs, ahead of its turn."""

    async def run(self, task: TaskAssigned, progress: Progress) -> Finished:
        """Does the task.

        Raises:
            FedbusError: it cannot be done.
        """


class EngineTrainer:
    """Trains with an engine of ``agents.engines``, the one of this name or the best; keeps it while it fits the tasks.

    Raises:
        EngineUnknownError: there is no engine of this name.
        EngineUnavailableError: it, or any, cannot run here.
    """

    def __init__(self, objects: ObjectCache, *, engine: str | None = None, threads: int = 1) -> None:
        self._objects = objects
        self._wanted = engine
        self._threads = threads
        # Before anything is downloaded; what the artifacts offer is not known yet.
        self._choice = choose(engine)
        self._specs: dict[str, TaskSpec] = {}
        self._opened: tuple[str, ArtifactManifest, Engine] | None = None
        # One session: tasks queue for it even when an earlier one is being given up.
        self._session = threading.Lock()

    @property
    def engine(self) -> str:
        """What trains now, or will as far as is known yet."""
        return self._choice.maker.label

    async def prepare(self, task: TaskAssigned) -> None:
        """Fetches spec, base model and shard."""
        spec = await self._spec(task)
        await together([self._objects.get(spec.base_model), self._objects.get(task.shard)])

    async def run(self, task: TaskAssigned, progress: Progress) -> Finished:
        """Does the task; see ``Trainer.run``."""
        spec = await self._spec(task)
        check_kind(spec.kind)
        manifest, engine = await self._open(spec)
        kind = open_kind(spec.kind, manifest.model)
        examples, _ = kind.decode(await self._objects.get(task.shard))
        content = await self._objects.get(spec.base_model)
        if len(content) % 4:
            raise MalformedObjectError(f"the base model has {len(content)} bytes, not whole float32 values")
        base = np.frombuffer(content, "<f4").astype(np.float32)

        def work() -> Finished:
            with self._session:
                result = run_task(TaskInputs(task, spec, examples, base), kind, engine, progress, time.monotonic)
                metrics = result.metrics.model_copy(update={"platform": PLATFORM})
                return Finished(encode_update(result.delta, spec.encoding), metrics)

        return await asyncio.to_thread(work)

    async def _spec(self, task: TaskAssigned) -> TaskSpec:
        key = task.spec.sha256
        if key not in self._specs:
            self._specs[key] = parsed(TaskSpec, await self._objects.get(task.spec))
        return self._specs[key]

    async def _open(self, spec: TaskSpec) -> tuple[ArtifactManifest, Engine]:
        if self._opened is None or self._opened[0] != spec.artifacts.sha256:
            manifest = parsed(ArtifactManifest, await self._objects.get(spec.artifacts))
            choice = choose(self._wanted, manifest.offered)
            log.info("engine %s, %s: %s", choice.name, choice.maker.label, choice.reason)
            paths = {role: await self._objects.path(file.ref) for role, file in choice.files(manifest).items()}
            engine = await asyncio.to_thread(open_engine, manifest, paths, choice=choice, threads=self._threads)
            self._choice, self._opened = choice, (spec.artifacts.sha256, manifest, engine)
        return self._opened[1:]


def parsed(kind: type[Model], data: bytes) -> Model:
    """The object that the JSON in ``data`` states.

    Raises:
        MalformedObjectError: it states something else.
    """
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        raise MalformedObjectError(f"not a {kind.__name__}: {what_is_wrong(error)}") from None


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
            platform=PLATFORM,
        )
        return Finished(self._updates[task.spec.sha256], metrics)
