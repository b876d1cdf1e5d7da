"""What a model takes: the size of its images, how its processor resizes, and its classes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifacts.manifest import MANIFEST_NAME, load_manifest
from data.class_names import told_apart
from data.dataset import ImageFormat
from data.errors import PreparationError
from data.pictures import Resizing, resizing_of

_HINT = "name a folder of training artifacts, or one that save_pretrained wrote"


@dataclass(frozen=True)
class ModelInput:
    """What pictures have to become for a model."""

    image: ImageFormat
    resizing: Resizing
    classes: tuple[str, ...]


def model_input(directory: Path) -> ModelInput:
    """Return what the model of a folder of artifacts, or of a Hugging Face folder, takes.

    Raises PreparationError when the folder is neither or its processor contradicts the model, and ManifestError when
    its manifest is malformed.
    """
    if (directory / MANIFEST_NAME).is_file():
        manifest = load_manifest(directory, verify=False)
        processor = manifest.base.get("processor")
        return ModelInput(
            image=ImageFormat(size=manifest.model.image_size, channels=_channels(manifest.model.channels)),
            resizing=resizing_of(processor if isinstance(processor, dict) else {}, manifest.model.image_size),
            classes=manifest.model.classes,
        )
    config = _object(directory / "config.json")
    size = config.get("image_size", 224)
    processor_file = directory / "preprocessor_config.json"
    labels = config.get("id2label", {})
    if not isinstance(size, int) or not isinstance(labels, dict):
        raise PreparationError(f"{directory}/config.json describes no classifier of square images", hint=_HINT)
    return ModelInput(
        image=ImageFormat(size=size, channels=_channels(config.get("num_channels", 3))),
        resizing=resizing_of(_object(processor_file) if processor_file.is_file() else {}, size),
        classes=told_apart(str(labels[key]) for key in sorted(labels, key=int)),
    )


def _channels(count: object) -> Any:
    if count not in (1, 3):
        raise PreparationError(f"a model of images with {count} channels cannot be fed; 1 and 3 can")
    return count


def _object(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise PreparationError(f"cannot read {path}: {error}", hint=_HINT) from error
    if not isinstance(content, dict):
        raise PreparationError(f"{path} is not a JSON object", hint=_HINT)
    return content
