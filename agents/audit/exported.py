"""Opens models that were taken out, in whatever form, to run them over pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from artifacts.inference import InferenceModel, inference_model
from artifacts.manifest import MANIFEST_NAME, TRAINABLE, load_manifest
from artifacts.pretrained import is_pretrained, read_pretrained
from artifacts.weights import read_weights, whole_model


def open_exported(path: Path, artifacts: Path) -> InferenceModel | None:
    """The model in an ONNX file, or in a folder of Hugging Face's layout; nothing when ``path`` is neither.

    Args:
        path: what ``fedbus model export`` or ``save_pretrained`` wrote.
        artifacts: folder with the graph that a folder's weights belong to; a whole ONNX file needs none.

    Raises:
        FedbusError: the model is damaged, or of another kind than the artifacts.
    """
    if path.suffix == ".onnx" and path.is_file():
        return InferenceModel(path)
    if not is_pretrained(path) or (path / MANIFEST_NAME).is_file():
        return None
    manifest = load_manifest(artifacts)
    whole, trained = whole_model(manifest), np.fromfile(artifacts / manifest.files[TRAINABLE].path, "<f4")
    base = read_weights(manifest, artifacts / whole.checkpoint.path, trained)
    return InferenceModel(inference_model(manifest, artifacts / whole.graph.path, read_pretrained(path, base)))
