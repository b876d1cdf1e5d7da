"""Takes a run's model from the bus and writes it in the forms that others use."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from agents.words.events import ModelPublished, RunStarted
from artifacts.errors import ManifestError
from artifacts.inference import inference_model
from artifacts.manifest import ArtifactManifest
from artifacts.pretrained import CARD, find_config, write_adapter, write_pretrained
from artifacts.weights import Weights, read_weights, whole_model
from bus.client import Bus
from bus.errors import FedbusError
from bus.process.files import write_atomically
from bus.process.folders import temporary_folder
from bus.words.envelope import Stored
from bus.words.problems import what_is_wrong
from bus.words.subjects import events_of_type

INFERENCE, PARAMETERS = "inference.onnx", "parameters.f32"
ABOUT = "Trained by federated learning:"


class Form(StrEnum):
    """The forms of a model: ONNX to predict with, Hugging Face's layout whole or as adapter, trained parameters."""

    ONNX = "onnx"
    SAFETENSORS = "safetensors"
    ADAPTER = "adapter"
    RAW = "raw"


DEFAULT_FORMS = (Form.ONNX, Form.SAFETENSORS, Form.RAW)


class ExportFolderError(FedbusError):
    """The folder of an export holds something else."""

    code = "export_folder"


class ModelUnknownError(FedbusError):
    """The run has no model of this round."""

    code = "model_unknown"


@dataclass(frozen=True)
class RunModel:
    """A run's model after a round; 0 is the one that it began with. ``eval_model`` is the file of its graph."""

    run: str
    round: int
    sha256: str
    manifest: ArtifactManifest
    eval_model: Path
    weights: Weights
    trained: NDArray[np.float32]


@contextlib.asynccontextmanager
async def fetched_model(bus: Bus, started: RunStarted, round_number: int | None) -> AsyncIterator[RunModel]:
    """The model of a round of a run, or the newest, with what belongs to it in a temporary folder.

    Raises:
        ModelUnknownError: the run has none of this round.
        ManifestError: its artifacts are of another version.
        TakeOutError: they do not hold the whole model.
        FedbusError: an object is missing or damaged.
    """
    models = {0: started.base_model}
    async with bus.follow(events_of_type(ModelPublished.TYPE, started.run), live=False) as items:
        async for item in items:
            if isinstance(item, Stored) and isinstance(item.event.data, ModelPublished):
                models.setdefault(item.event.data.round, item.event.data.model)
    number = max(models) if round_number is None else round_number
    if number not in models:
        raise ModelUnknownError(f"{started.run} has no model of round {number}", hint=f"it has {listed(models)}")
    try:
        manifest = ArtifactManifest.model_validate_json(await bus.objects.get(started.artifacts))
    except ValidationError as error:
        raise ManifestError(f"the run's artifacts are of another version: {what_is_wrong(error)}") from None
    whole = whole_model(manifest)
    trained = np.frombuffer(await bus.objects.get(models[number]), "<f4").astype(np.float32)
    with temporary_folder("export") as folder:
        graph, checkpoint = folder / "eval_model.onnx", folder / "checkpoint"
        await bus.objects.fetch_to(whole.graph.ref, graph)
        await bus.objects.fetch_to(whole.checkpoint.ref, checkpoint)
        weights = read_weights(manifest, checkpoint, trained)
        yield RunModel(started.run, number, models[number].sha256, manifest, graph, weights, trained)


def listed(models: Collection[int]) -> str:
    """Rounds as a person reads them: ``0 (its base), 1 to 10``."""
    rounds = sorted(set(models) - {0})
    if not rounds:
        return "only round 0, the base that it began with: no round has made a model yet"
    spans = f"{rounds[0]} to {rounds[-1]}" if len(rounds) > 2 and rounds[-1] - rounds[0] == len(rounds) - 1 else ""
    return f"0 (its base), {spans or ', '.join(map(str, rounds))}"


def check_folder(out: Path) -> None:
    """Sees to it that an export into ``out`` overwrites nothing but an earlier one.

    Raises:
        ExportFolderError: it is a file, or a folder that holds something else.
    """
    if out.is_dir():
        is_export = any((out / name).is_file() for name in (INFERENCE, PARAMETERS)) or _is_ours(out / CARD)
        if is_export or not any(out.iterdir()):
            return
        raise ExportFolderError(
            f"{out} is not empty, and no earlier export lies there", hint="choose a new folder with -o"
        )
    if out.exists():
        raise ExportFolderError(f"{out} is no folder", hint="choose a new folder with -o")


def _is_ours(card: Path) -> bool:
    """Whether a model card is one that ``write_model`` wrote."""
    try:
        return ABOUT in card.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False


def write_model(
    model: RunModel, out: Path, forms: Collection[Form] = DEFAULT_FORMS, *, bases: tuple[Path, ...] = ()
) -> list[Path]:
    """Writes the model into ``out`` and returns the paths.

    Args:
        bases: where the base model's config may lie when the artifacts do not hold it; see ``find_config``.

    Raises:
        TakeOutError: it cannot be written in one of the forms; nothing of that form is left then.
    """
    about = f"{ABOUT} round {model.round} of the fedbus run {model.run}, SHA-256 {model.sha256}."
    config = find_config(model.manifest, model.weights, bases) if Form.SAFETENSORS in forms else {}
    out.mkdir(parents=True, exist_ok=True)
    paths = []
    if Form.ONNX in forms:
        content = inference_model(
            model.manifest, model.eval_model, model.weights, run=model.run, round=str(model.round), sha256=model.sha256
        )
        write_atomically(out / INFERENCE, content)
        paths.append(out / INFERENCE)
    if Form.SAFETENSORS in forms:
        paths += write_pretrained(out, model.manifest, model.weights, config, about=about)
    if Form.ADAPTER in forms:
        paths += write_adapter(out, model.manifest, model.weights, about=about)
    if Form.RAW in forms:
        write_atomically(out / PARAMETERS, model.trained.astype("<f4").tobytes())
        paths.append(out / PARAMETERS)
    return paths
