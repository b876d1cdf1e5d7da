"""The engine ``ort-training``: onnxruntime's training sessions on the CPU."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path

from agents.core.learning.contracts import Engine
from artifacts.manifest import ORT_TRAINING, ArtifactManifest


class OrtTraining:
    """See ``EngineMaker``."""

    label = "onnxruntime-training native"
    opens = ORT_TRAINING
    preference = 0

    def why_not(self) -> str | None:
        """Looks for the training build beside the ordinary one, without loading either."""
        found = importlib.util.find_spec("onnxruntime")
        folders = found.submodule_search_locations if found is not None else None
        if any((Path(folder) / "training").is_dir() for folder in folders or ()):
            return None
        return "onnxruntime-training-cpu is not installed"

    def open(self, manifest: ArtifactManifest, files: Mapping[str, Path], *, threads: int) -> Engine:
        """Sessions with this many threads.

        Raises:
            EngineError: onnxruntime refuses a file.
        """
        from artifacts.ort_training import NativeTrainer

        return NativeTrainer(manifest, files, threads=threads)


ENGINE = OrtTraining()
