"""Compares any two models on a dataset, without a broker: what ``fedbus evaluate`` does."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from agents.audit.compare import Comparison, compare
from agents.audit.exported import open_exported
from agents.audit.report.model import Confusion
from agents.audit.report.pictures import confusion_matrices
from agents.core.learning.contracts import TaskKind
from agents.core.learning.kinds import open_kind
from agents.engines import open_engine
from agents.evaluator.scoring import HeldOutScorer
from artifacts.inference import InferenceModel
from artifacts.manifest import TRAINABLE, ArtifactManifest, ModelFacts, artifact_paths, load_manifest
from bus.errors import FedbusError
from data.dataset import UNLABELLED, load_dataset
from data.shards import BROKEN_TENSORS


class ComparisonError(FedbusError):
    """Two models and a dataset do not fit each other, or a file is no model."""

    code = "comparison_impossible"


def compare_models(a: Path, b: Path, data: Path, *, artifacts: Path) -> Comparison:
    """The comparison of two models on the labelled images of ``data``.

    Args:
        a: an artifact folder, a file of trainable parameters for ``artifacts``, or a model that was taken out.
        b: likewise.
        data: a dataset folder, or a shard with labels; images without a label are left out.
        artifacts: the folder that files of parameters belong to.

    Raises:
        FedbusError: one of them is missing or malformed, or they do not fit each other.
    """
    models = [_open(path, artifacts) for path in (a, b)]
    whose = [(one.kind, one.facts) if isinstance(one, InferenceModel) else _whose(load_manifest(one)) for one in models]
    (kind_name, facts), classes = whose[0], whose[0][1].classes
    kind = open_kind(kind_name, facts)
    images, labels = _labelled_images(data, classes, kind)
    if whose[1][1].classes != classes or whose[1][0] != kind_name:
        raise ComparisonError("the two models have different classes", hint="build them with the same labels")
    for _, one in whose:
        _check_size(one, images)
    outputs = [
        model.logits(images) if isinstance(model, InferenceModel) else _outputs(path, model, images, labels)
        for path, model in zip((a, b), models, strict=True)
    ]
    return compare((str(a), str(b)), kind, (outputs[0], outputs[1]), labels, classes)


def _open(path: Path, artifacts: Path) -> InferenceModel | Path:
    """A model that was taken out, or else the folder of artifacts that ``path`` is or belongs to."""
    if not path.exists():
        raise ComparisonError(
            f"there is no model {path}: no file and no folder has this name",
            hint=f"a run's model is written by fedbus model export RUN -o {path}",
        )
    return open_exported(path, artifacts) or (path if path.is_dir() else artifacts)


def _whose(manifest: ArtifactManifest) -> tuple[str, ModelFacts]:
    return manifest.kind, manifest.model


def _check_size(model: ModelFacts, images: NDArray[np.uint8]) -> None:
    size = model.image_size
    if images.shape[1:] != (size, size, model.channels):
        raise ComparisonError(
            f"the images are {images.shape[1:]} (height, width, channels), the model takes {size} x {size}",
            hint="prepare the pictures for this model: fedbus data prepare FOLDER --artifacts DIR",
        )


def _outputs(path: Path, folder: Path, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> NDArray[np.float32]:
    manifest = load_manifest(folder, verify=False)
    parameters = read_parameters(folder / manifest.files[TRAINABLE].path if path.is_dir() else path, manifest)
    engine = open_engine(manifest, artifact_paths(manifest, folder))
    kind = open_kind(manifest.kind, manifest.model)
    scorer = HeldOutScorer(engine, kind, images, labels, classes=manifest.model.classes)
    return asyncio.run(scorer.outputs(parameters))


def read_parameters(path: Path, manifest: ArtifactManifest) -> NDArray[np.float32]:
    """Trainable parameters float32 [trainable_count] of a file.

    A ``.safetensors`` file has the manifest's trainable tensors by name; any other holds the raw little-endian float32
    buffer in manifest order.

    Raises:
        ComparisonError: it is missing, malformed, or of another model.
    """
    try:
        if path.suffix == ".safetensors":
            tensors = load_file(path)
            flat = [tensors[one.name].astype(np.float32).ravel() for one in manifest.trainable]
            parameters = np.concatenate(flat)
        else:
            parameters = np.fromfile(path, "<f4").astype(np.float32)
            if path.stat().st_size != 4 * manifest.trainable_count:
                raise ValueError(f"{path.stat().st_size} bytes")
    except KeyError as error:
        raise ComparisonError(f"{path} has no tensor {error}", hint="give its artifact folder as --artifacts") from None
    except (OSError, *BROKEN_TENSORS) as error:
        raise ComparisonError(
            f"{path} does not hold {manifest.trainable_count} trainable parameters: {error}",
            hint="give its artifact folder as --artifacts",
        ) from None
    if parameters.shape != (manifest.trainable_count,):
        raise ComparisonError(f"{path} has {parameters.size} parameters, the model {manifest.trainable_count}")
    return parameters


def _labelled_images(
    data: Path, classes: tuple[str, ...], kind: TaskKind
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    if data.is_dir():
        dataset = load_dataset(data)
        if dataset.classes != classes:
            raise ComparisonError(f"{data} and the models have different classes")
        images, labels = dataset.images, dataset.labels
    else:
        try:
            images, found = kind.decode(data.read_bytes())
        except OSError as error:
            raise ComparisonError(f"{data} cannot be read: {error.strerror}") from None
        labels = np.full(len(images), UNLABELLED, np.int64) if found is None else found
    known = labels != UNLABELLED
    if not known.any() or labels.max() >= len(classes):
        raise ComparisonError(f"{data} has no images with labels of the models' classes")
    return images[known], labels[known]


def write_comparison(result: Comparison, out: Path) -> None:
    """Writes ``comparison.json`` and ``comparison.svg`` (both confusion matrices) into ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    confusion = Confusion(base=result.a.by_class.confusion, final=result.b.by_class.confusion)
    picture = confusion_matrices(confusion, result.classes, (Path(result.a.name).name, Path(result.b.name).name))
    (out / "comparison.json").write_text(result.model_dump_json(indent=2) + "\n", encoding="utf-8")
    (out / "comparison.svg").write_text(picture, encoding="utf-8")
