"""One recorded task of the shipped artifacts and images: its objects, and what the native engine makes of it."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from agents.core.learning.augment import default_augmentation
from agents.core.learning.kinds import open_kind
from agents.core.learning.task import TaskInputs, TaskResult, run_task
from agents.engines import open_engine
from agents.words.events import TaskAssigned
from agents.words.run_config import TaskSpec
from artifacts.manifest import artifact_paths, load_manifest
from bus.words.values import Ref
from data.dataset import load_dataset
from data.shards import encode_shard

ROOT = Path(__file__).parents[2]
ARTIFACTS = ROOT / "artifacts" / "default"
USERS = ROOT / "data" / "fashion_mnist" / "users"


@dataclass
class RecordedTask:
    """A task, and every object that it refers to by digest."""

    task: TaskAssigned
    spec: TaskSpec
    images: NDArray[np.uint8]
    base: NDArray[np.float32]
    objects: dict[str, bytes] = field(default_factory=dict)

    @property
    def inputs(self) -> TaskInputs:
        """What ``run_task`` takes."""
        return TaskInputs(self.task, self.spec, self.images, self.base)


def recorded_task(
    artifacts: Path = ARTIFACTS,
    *,
    optimizer: bytes | None = None,
    stateless: bool = True,
    epochs: int = 1,
    learning_rate: float = 0.03,
    base: bytes | None = None,
) -> RecordedTask:
    """The first twenty images of the shipped users, with their true labels but one that the labeller dropped.

    Another ``optimizer`` than that of the ``artifacts`` takes its place; ``stateless`` is what the manifest says of it.
    """
    objects: dict[str, bytes] = {}

    def put(data: bytes) -> Ref:
        digest = hashlib.sha256(data).hexdigest()
        objects[digest] = data
        return Ref(name=f"sha256-{digest}", size=len(data), sha256=digest)

    for file in artifacts.iterdir():
        if file.is_file():
            put(file.read_bytes())
    dataset = load_dataset(USERS)
    images = np.ascontiguousarray(dataset.images[:20])
    base = base or (artifacts / "trainable.f32").read_bytes()
    manifest = json.loads((artifacts / "manifest.json").read_text(encoding="utf-8"))
    manifest["optimizer"]["stateless"] = stateless
    if optimizer is not None:
        manifest["files"]["optimizer_model"] |= {"size": len(optimizer), "sha256": put(optimizer).sha256}
    spec = TaskSpec(
        run="recorded",
        round=1,
        artifacts=put(json.dumps(manifest).encode()),
        base_model=put(base),
        learning_rate=learning_rate,
        epochs=epochs,
        augmentations=6,
        augmentation=default_augmentation(),
        encoding="float32",
    )
    labels = tuple(None if index == 3 else int(label) for index, label in enumerate(dataset.labels[:20]))
    task = TaskAssigned(
        run="recorded",
        round=1,
        user="user-000",
        shard=put(encode_shard(images)),
        labels=labels,
        spec=put(spec.model_dump_json().encode()),
        seed=2_718_281_828,
    )
    return RecordedTask(task, spec, images, np.frombuffer(base, "<f4"), objects)


class RecordingNative:
    """The native engine, with the digest of every input that the model sees."""

    def __init__(self, artifacts: Path) -> None:
        manifest = load_manifest(artifacts)
        self.kind = open_kind(manifest.kind, manifest.model)
        self.batches: list[str] = []
        self._trainer = open_engine(manifest, artifact_paths(manifest, artifacts))

    def begin(self, base: NDArray[np.float32], learning_rate: float | None) -> None:
        self._trainer.begin(base, learning_rate)

    def features(self, pixel_values: NDArray[np.float32]) -> NDArray[np.float32]:
        return self._trainer.features(pixel_values)

    def predict(self, pixel_values: NDArray[np.float32]) -> NDArray[np.float32]:
        self._note(pixel_values)
        return self._trainer.predict(pixel_values)

    def train_step(self, pixel_values: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
        self._note(pixel_values)
        return self._trainer.train_step(pixel_values, labels)

    def parameters(self) -> NDArray[np.float32]:
        return self._trainer.parameters()

    def _note(self, pixel_values: NDArray[np.float32]) -> None:
        self.batches.append(hashlib.sha256(np.ascontiguousarray(pixel_values).tobytes()).hexdigest())


def run_natively(recorded: RecordedTask, artifacts: Path = ARTIFACTS) -> tuple[TaskResult, list[str]]:
    """The result of the task in the native engine, and the digests of its batches."""
    engine = RecordingNative(artifacts)
    result = run_task(recorded.inputs, engine.kind, engine, lambda progress: None, time.monotonic)
    return result, engine.batches
