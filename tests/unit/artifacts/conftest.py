"""A tiny Vision Transformer with random weights, and artifacts built from it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import ViTConfig, ViTForImageClassification

from artifacts.base_model import BaseModel
from artifacts.build import BuildOptions, build_artifacts
from artifacts.manifest import ArtifactManifest, artifact_paths
from artifacts.ort_training import NativeTrainer

CLASSES = ("ant", "bee", "cat", "dog", "eel")


def tiny_model(**changes: Any) -> ViTForImageClassification:
    torch.manual_seed(7)
    settings: dict[str, Any] = {
        "image_size": 8,
        "patch_size": 4,
        "num_channels": 3,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        # The build must take dropout out of the graph.
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "id2label": dict(enumerate(CLASSES)),
        "label2id": {name: index for index, name in enumerate(CLASSES)},
    }
    return ViTForImageClassification(ViTConfig(**{**settings, **changes})).eval()


@pytest.fixture(scope="session")
def tiny_base() -> BaseModel:
    return BaseModel(tiny_model(), "tiny", (0.5, 0.4, 0.3), (0.5, 0.5, 0.25), "MIT")


Built = tuple[ArtifactManifest, Path, NativeTrainer]


@pytest.fixture(scope="session")
def build(tiny_base: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Built]:
    """Build artifacts of the tiny model once for each set of options; every call opens a fresh trainer."""
    made: dict[BuildOptions, tuple[ArtifactManifest, Path]] = {}

    def make(mode: str, **options: Any) -> Built:
        key = BuildOptions(mode, **options)
        if key not in made:
            directory = tmp_path_factory.mktemp("artifacts")
            made[key] = (build_artifacts(tiny_base, key, directory, command="test"), directory)
        manifest, directory = made[key]
        return manifest, directory, NativeTrainer(manifest, artifact_paths(manifest, directory))

    return make
