"""Builds a folder of training artifacts and its manifest from a Vision Transformer, and proves it against torch."""

from __future__ import annotations

import json
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
import torch
from numpy.typing import NDArray

from artifacts.base_model import BaseModel
from artifacts.errors import ExportError
from artifacts.export import ACTIVATIONS, LABELS, LOGITS, LOSS, PIXELS, export_forward, export_prefix
from artifacts.manifest import (
    MANIFEST_NAME,
    ArtifactFile,
    ArtifactManifest,
    BuildFacts,
    ModelFacts,
    OptimizerFacts,
    PrefixFacts,
    TrainableTensor,
    artifact_paths,
    describe_file,
)
from artifacts.memory import estimate_memory
from artifacts.modes import TrainMode, parse_mode
from artifacts.optimizer import LEARNING_RATE_INITIALIZER, build_optimizer
from artifacts.ort_training import NativeTrainer
from artifacts.self_check import Agreement, check_artifacts
from artifacts.torch_models import FrozenPrefix, TrainableModel, TrainableSuffix, has_frozen_prefix
from artifacts.training_graph import build_training_graphs
from bus.process.files import write_atomically

_ONNX, _BYTES = "application/onnx", "application/octet-stream"
_FILES = {
    "training_model": ("training_model.onnx", _ONNX),
    "eval_model": ("eval_model.onnx", _ONNX),
    "checkpoint": ("checkpoint", _BYTES),
    "optimizer_model": ("optimizer_model.onnx", _ONNX),
    "trainable": ("trainable.f32", _BYTES),
    "prefix_model": ("prefix_model.onnx", _ONNX),
    "suffix_training_model": ("suffix_training_model.onnx", _ONNX),
    "suffix_eval_model": ("suffix_eval_model.onnx", _ONNX),
    "suffix_checkpoint": ("suffix_checkpoint", _BYTES),
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
    model = TrainableModel(base.model, mode, seed=options.seed).eval()
    facts = _model_facts(base, model)
    example = torch.zeros(2, facts.channels, facts.image_size, facts.image_size)
    with _staging(directory) as staging:
        trainable = _write_graphs(staging, "", model, example, PIXELS, options)
        prefix = _write_split(staging, model, mode, example, trainable, options) if has_frozen_prefix(mode) else None
        initial = np.concatenate([values.reshape(-1) for values in trainable.values()])
        (staging / _FILES["trainable"][0]).write_bytes(initial.astype("<f4").tobytes())
        (staging / _FILES["optimizer_model"][0]).write_bytes(_optimizer(options))
        draft = ArtifactManifest(
            version=1,
            name=f"{base.name} {options.mode}",
            mode=options.mode,
            model=facts,
            inputs=(PIXELS, LABELS),
            outputs=(LOSS, LOGITS),
            label_smoothing=options.label_smoothing,
            optimizer=_optimizer_facts(options),
            trainable=_layout(trainable),
            trainable_count=len(initial),
            files=_files(staging),
            prefix=prefix,
            memory=estimate_memory(
                base.model.config,
                mode,
                tokens=base.model.vit.embeddings.position_embeddings.shape[1],
                parameters=facts.parameters_total,
                trainable=len(initial),
            ),
            base={"name": base.name, "config": _config(base), **_plain(base.facts)},
            build=_build_facts(options, command, Agreement(0.0, 0.0)),
        )
        agreement = _agreement(draft, staging, model, initial, options)
        facts_of_build = _build_facts(options, command, agreement)
        manifest = draft.model_copy(update={"engines": draft.offered, "build": facts_of_build})
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


def _write_graphs(
    directory: Path, prefix: str, model: TrainableModel, example: torch.Tensor, source: str, options: BuildOptions
) -> dict[str, NDArray[np.float32]]:
    """Write training model, eval model and checkpoint under a prefix of their names; return the initial parameters."""
    graphs = build_training_graphs(
        export_forward(model, example, source=source),
        trainable={name for name, parameter in model.plain_parameters() if parameter.requires_grad},
        frozen={name for name, parameter in model.plain_parameters() if not parameter.requires_grad},
        label_smoothing=options.label_smoothing,
    )
    onnx.save(graphs.training_model, directory / _FILES[f"{prefix}training_model"][0])
    onnx.save(graphs.eval_model, directory / _FILES[f"{prefix}eval_model"][0])
    graphs.save_checkpoint(directory / _FILES[f"{prefix}checkpoint"][0])
    return graphs.trainable


def _write_split(
    directory: Path,
    model: TrainableModel,
    mode: TrainMode,
    example: torch.Tensor,
    trainable: Mapping[str, NDArray[np.float32]],
    options: BuildOptions,
) -> PrefixFacts:
    """Write the same model once more, cut in two where training begins."""
    prefix = FrozenPrefix(model, mode).eval()
    with torch.no_grad():
        activations = prefix(example)
    onnx.save(export_prefix(prefix, example), directory / _FILES["prefix_model"][0])
    suffix = TrainableSuffix(model, mode).eval()
    order = _write_graphs(directory, "suffix_", suffix, activations, ACTIVATIONS, options)
    if list(order) != list(trainable):
        raise ExportError("the suffix lays out its parameters in another order than the whole model")
    return PrefixFacts(input=PIXELS, output=ACTIVATIONS, shape=tuple(activations.shape[1:]))


def _agreement(
    manifest: ArtifactManifest,
    directory: Path,
    model: TrainableModel,
    initial: NDArray[np.float32],
    options: BuildOptions,
) -> Agreement:
    """Check the whole model and, where there is one, the split against torch; return the larger differences."""
    paths = artifact_paths(manifest, directory)
    whole = {role: path for role, path in paths.items() if role != "prefix_model"}
    found = []
    for files in (whole, paths) if manifest.prefix else (whole,):
        trainer = NativeTrainer(manifest, files)
        found.append(
            check_artifacts(trainer, model, initial, label_smoothing=options.label_smoothing, seed=options.seed)
        )
    return Agreement(max(one.gradient for one in found), max(one.logit for one in found))


def _optimizer(options: BuildOptions) -> bytes:
    return build_optimizer(
        options.optimizer,
        learning_rate=options.learning_rate,
        weight_decay=options.weight_decay,
        clip_norm=options.clip_norm,
    )


def _optimizer_facts(options: BuildOptions) -> OptimizerFacts:
    return OptimizerFacts(
        kind=options.optimizer,
        stateless=options.optimizer == "sgd",
        learning_rate=options.learning_rate,
        learning_rate_initializer=LEARNING_RATE_INITIALIZER,
        weight_decay=options.weight_decay,
        clip_norm=options.clip_norm,
    )


def _build_facts(options: BuildOptions, command: str, agreement: Agreement) -> BuildFacts:
    return BuildFacts(
        command=command,
        seed=options.seed,
        versions={name: version(name) for name in _PACKAGES},
        max_gradient_error=agreement.gradient,
        max_logit_error=agreement.logit,
    )


def _files(directory: Path) -> dict[str, ArtifactFile]:
    present = {role: entry for role, entry in _FILES.items() if (directory / entry[0]).exists()}
    return {role: describe_file(directory, *entry) for role, entry in present.items()}


def _layout(tensors: Mapping[str, NDArray[np.float32]]) -> tuple[TrainableTensor, ...]:
    layout, offset = [], 0
    for name, values in tensors.items():
        layout.append(TrainableTensor(name=name, shape=values.shape, offset=offset))
        offset += values.size
    return tuple(layout)


def _config(base: BaseModel) -> dict[str, Any]:
    """What a model like the base is made from, without the names of the classes, which the manifest has."""
    config: dict[str, Any] = json.loads(base.model.config.to_json_string())
    return {name: value for name, value in config.items() if name not in ("id2label", "label2id")}


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
            if (staging / name).exists():
                os.replace(staging / name, directory / name)
            else:
                (directory / name).unlink(missing_ok=True)
        write_atomically(directory / MANIFEST_NAME, manifest)
    finally:
        shutil.rmtree(staging)
