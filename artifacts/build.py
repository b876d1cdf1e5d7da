"""Builds a folder of training artifacts and its manifest from a Vision Transformer, and proves it against torch."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from artifacts.base_model import BaseModel
from artifacts.errors import ExportError
from artifacts.export import LABELS, LOGITS, LOSS, PIXELS, TrainableModel, export_forward
from artifacts.manifest import (
    MANIFEST_NAME,
    ArtifactFiles,
    ArtifactManifest,
    BuildFacts,
    ModelFacts,
    OptimizerFacts,
    TrainableTensor,
    artifact_paths,
    describe_file,
)
from artifacts.modes import parse_mode
from artifacts.optimizer import LEARNING_RATE_INITIALIZER, build_optimizer
from artifacts.ort_training import NativeTrainer
from artifacts.self_check import Agreement, check_artifacts
from artifacts.training_graph import TrainingGraphs, build_training_graphs
from data.files import write_atomically

_ONNX, _BYTES = "application/onnx", "application/octet-stream"
_FILES = {
    "training_model": ("training_model.onnx", _ONNX),
    "eval_model": ("eval_model.onnx", _ONNX),
    "checkpoint": ("checkpoint", _BYTES),
    "optimizer_model": ("optimizer_model.onnx", _ONNX),
    "trainable": ("trainable.f32", _BYTES),
}
_PACKAGES = ("torch", "transformers", "peft", "onnx", "onnxruntime-training-cpu")


@dataclass(frozen=True)
class BuildOptions:
    """What to train and how a step changes it; `mode` is head, head-weight, last-K, lora:R or full."""

    mode: str
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = 0.03
    weight_decay: float = 0.0
    clip_norm: float | None = None
    label_smoothing: float = 0.0
    seed: int = 0


def build_artifacts(base: BaseModel, options: BuildOptions, directory: Path, *, command: str) -> ArtifactManifest:
    """Write the artifacts of a base model into a folder and return their manifest; `base` stays as it is.

    All is built and checked in a temporary folder beside the target first; then the manifest is the last file to
    arrive, so a folder with a manifest is complete. `command` is what the manifest says made it.

    Raises TrainModeError for a mode that does not fit the model, ExportError when the model cannot be exported, and
    SelfCheckError when the result does not compute what torch computes.
    """
    mode = parse_mode(options.mode)
    _check(options)
    model = TrainableModel(base.model, mode, seed=options.seed)
    model.eval()
    facts = _model_facts(base, model)
    graphs = _graphs(model, facts, options)
    initial = np.concatenate([values.reshape(-1) for values in graphs.trainable.values()])
    with _staging(directory) as staging:
        _write_files(staging, graphs, initial, options)
        draft = _manifest(base, options, facts, graphs, staging, Agreement(0.0, 0.0), command)
        trainer = NativeTrainer(draft, artifact_paths(draft, staging))
        agreement = check_artifacts(trainer, model, initial, label_smoothing=options.label_smoothing, seed=options.seed)
        manifest = _manifest(base, options, facts, graphs, staging, agreement, command)
        (staging / MANIFEST_NAME).write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return manifest


def _check(options: BuildOptions) -> None:
    clip = options.clip_norm
    right = {
        "label smoothing": 0 <= options.label_smoothing < 1,
        "learning rate": 0 < options.learning_rate < math.inf,
        "weight decay": 0 <= options.weight_decay < math.inf,
        "clip norm": clip is None or 0 < clip < math.inf,
    }
    wrong = [name for name, fits in right.items() if not fits]
    if wrong:
        raise ExportError(
            f"{' and '.join(wrong)} out of range in {options}",
            hint="label smoothing is in [0, 1); rate and clip norm are positive, weight decay is not negative",
        )


def _model_facts(base: BaseModel, model: TrainableModel) -> ModelFacts:
    size = base.model.config.image_size
    if isinstance(size, list | tuple):
        if len(set(size)) != 1:
            raise ExportError(f"images of {size} pixels are not square")
        size = size[0]
    return ModelFacts(
        architecture=type(base.model).__name__,
        image_size=size,
        channels=base.model.config.num_channels,
        classes=base.classes,
        mean=base.mean,
        std=base.std,
        parameters_total=sum(parameter.numel() for _, parameter in model.plain_parameters()),
        licence=base.licence,
    )


def _graphs(model: TrainableModel, facts: ModelFacts, options: BuildOptions) -> TrainingGraphs:
    forward = export_forward(model, channels=facts.channels, image_size=facts.image_size)
    trainable = {name for name, parameter in model.plain_parameters() if parameter.requires_grad}
    frozen = {name for name, parameter in model.plain_parameters() if not parameter.requires_grad}
    return build_training_graphs(forward, trainable=trainable, frozen=frozen, label_smoothing=options.label_smoothing)


def _write_files(directory: Path, graphs: TrainingGraphs, initial: NDArray[np.float32], options: BuildOptions) -> None:
    onnx.save(graphs.training_model, directory / _FILES["training_model"][0])
    onnx.save(graphs.eval_model, directory / _FILES["eval_model"][0])
    graphs.save_checkpoint(directory / _FILES["checkpoint"][0])
    optimizer = build_optimizer(
        options.optimizer,
        learning_rate=options.learning_rate,
        weight_decay=options.weight_decay,
        clip_norm=options.clip_norm,
    )
    (directory / _FILES["optimizer_model"][0]).write_bytes(optimizer)
    (directory / _FILES["trainable"][0]).write_bytes(initial.astype("<f4").tobytes())


def _manifest(
    base: BaseModel,
    options: BuildOptions,
    facts: ModelFacts,
    graphs: TrainingGraphs,
    directory: Path,
    agreement: Agreement,
    command: str,
) -> ArtifactManifest:
    files = {role: describe_file(directory, name, media_type) for role, (name, media_type) in _FILES.items()}
    return ArtifactManifest(
        version=1,
        name=f"{base.name} {options.mode}",
        mode=options.mode,
        model=facts,
        inputs=(PIXELS, LABELS),
        outputs=(LOSS, LOGITS),
        label_smoothing=options.label_smoothing,
        optimizer=OptimizerFacts(
            kind=options.optimizer,
            stateless=options.optimizer == "sgd",
            learning_rate=options.learning_rate,
            learning_rate_initializer=LEARNING_RATE_INITIALIZER,
            weight_decay=options.weight_decay,
            clip_norm=options.clip_norm,
        ),
        trainable=_layout(graphs.trainable),
        trainable_count=sum(values.size for values in graphs.trainable.values()),
        files=ArtifactFiles(**files),
        base={"name": base.name, **_plain(base.facts)},
        build=BuildFacts(
            command=command,
            seed=options.seed,
            versions={name: version(name) for name in _PACKAGES},
            max_gradient_error=agreement.gradient,
            max_logit_error=agreement.logit,
        ),
    )


def _layout(tensors: Mapping[str, NDArray[np.float32]]) -> tuple[TrainableTensor, ...]:
    layout, offset = [], 0
    for name, values in tensors.items():
        layout.append(TrainableTensor(name=name, shape=values.shape, offset=offset))
        offset += values.size
    return tuple(layout)


def _plain(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if value not in (None, {})}


@contextmanager
def _staging(directory: Path) -> Iterator[Path]:
    """Yield a temporary folder whose files replace those of the target when the block ends without an error."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExportError(f"cannot write artifacts to {directory}: {error}", hint="name another folder") from error
    staging = Path(tempfile.mkdtemp(prefix=".build-", dir=directory))
    try:
        yield staging
        manifest = (staging / MANIFEST_NAME).read_bytes()
        # Without its manifest a folder is visibly incomplete while its files are exchanged.
        (directory / MANIFEST_NAME).unlink(missing_ok=True)
        for name, _ in _FILES.values():
            os.replace(staging / name, directory / name)
        write_atomically(directory / MANIFEST_NAME, manifest)
    finally:
        shutil.rmtree(staging)
