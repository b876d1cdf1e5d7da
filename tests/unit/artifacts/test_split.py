from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from agents.core.learning.kinds import open_kind
from agents.core.learning.task import TaskInputs, run_task
from artifacts import ort_training
from artifacts.base_model import BaseModel
from artifacts.build import BuildOptions, build_artifacts
from artifacts.manifest import ArtifactManifest, artifact_paths, load_manifest
from artifacts.memory import estimate_memory
from artifacts.modes import parse_mode
from artifacts.ort_training import NativeTrainer
from tests.builders import assigned
from tests.unit.agents.audit.test_ledger import SPEC
from tests.unit.artifacts.conftest import Built, tiny_model

Build = Callable[..., Built]
SPLIT = {"head": (16,), "head-weight": (16,), "last-1": (5, 16), "last-2": (5, 16)}


def batch(count: int, seed: int = 0) -> tuple[Any, Any]:
    generator = np.random.default_rng(seed)
    return generator.standard_normal((count, 3, 8, 8), dtype=np.float32), generator.integers(0, 5, count)


def whole_trainer(manifest: ArtifactManifest, directory: Path) -> NativeTrainer:
    paths = artifact_paths(manifest, directory)
    return NativeTrainer(manifest, {role: path for role, path in paths.items() if role != "prefix_model"})


@pytest.mark.parametrize("mode", SPLIT)
def test_prefix_and_suffix_together_are_the_whole_model(build: Build, mode: str) -> None:
    manifest, directory, trainer = build(mode, learning_rate=0.1, label_smoothing=0.1)
    assert manifest.prefix is not None
    assert manifest.prefix.shape == SPLIT[mode]
    whole = whole_trainer(manifest, directory)
    assert np.array_equal(trainer.parameters(), whole.parameters())
    features = trainer.features(batch(4)[0])
    assert features.shape == (4, *SPLIT[mode])
    for step in range(5):
        pixels, labels = batch(4, step)
        np.testing.assert_allclose(trainer.predict(pixels), whole.predict(pixels), atol=1e-5)
        assert trainer.train_step(pixels, labels) == pytest.approx(whole.train_step(pixels, labels), rel=1e-5)
    np.testing.assert_allclose(trainer.parameters(), whole.parameters(), atol=1e-5)
    assert np.array_equal(trainer.features(batch(4)[0]), features)


@pytest.mark.parametrize("mode", ["lora:2", "full"])
def test_modes_that_train_from_the_start_have_no_prefix(build: Build, mode: str) -> None:
    manifest, _, trainer = build(mode)
    assert manifest.prefix is None
    assert "prefix_model" not in manifest.files
    pixels, _ = batch(3)
    assert trainer.features(pixels) is pixels


def test_features_do_the_same_as_the_images_that_they_come_from(build: Build) -> None:
    _, _, trainer = build("last-1", learning_rate=0.1)
    pixels, labels = batch(4)
    features = trainer.features(pixels)
    assert trainer.evaluate(features, labels)[0] == trainer.evaluate(pixels, labels)[0]
    start = trainer.parameters()
    trainer.train_step(features, labels)
    trained = trainer.parameters()
    trainer.load_parameters(start)
    trainer.train_step(pixels, labels)
    assert np.array_equal(trainer.parameters(), trained)


def test_the_suffix_carries_none_of_the_frozen_weights(build: Build) -> None:
    manifest, directory, _ = build("head")
    names = {value.name for value in onnx.load(directory / manifest.files["suffix_training_model"].path).graph.input}
    assert {"activations", "labels", "classifier.weight", "classifier.bias"} <= names
    assert not [name for name in names if name.startswith("vit.")]
    assert manifest.files["suffix_checkpoint"].size < manifest.files["checkpoint"].size / 4
    outputs = [value.name for value in onnx.load(directory / manifest.files["suffix_eval_model"].path).graph.output]
    assert outputs == ["loss", "logits"]


def test_batches_beyond_the_memory_bound_are_cut_and_give_the_same(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, directory, at_once = build("last-1")
    monkeypatch.setattr(ort_training, "_FORWARD_BYTES", 3 * manifest.memory.forward_per_image)
    in_parts = NativeTrainer(manifest, artifact_paths(manifest, directory))
    pixels, labels = batch(10)
    np.testing.assert_allclose(in_parts.features(pixels), at_once.features(pixels), atol=1e-6)
    loss, logits = in_parts.evaluate(pixels, labels)
    expected_loss, expected_logits = at_once.evaluate(pixels, labels)
    np.testing.assert_allclose(logits, expected_logits, atol=1e-6)
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    monkeypatch.setattr(ort_training, "_FORWARD_BYTES", 1)
    assert NativeTrainer(manifest, artifact_paths(manifest, directory)).predict(pixels).shape == (10, 5)


def test_building_another_mode_into_the_folder_takes_the_split_away(tiny_base: BaseModel, tmp_path: Path) -> None:
    build_artifacts(tiny_base, BuildOptions("head"), tmp_path, command="test")
    assert (tmp_path / "prefix_model.onnx").exists()
    build_artifacts(tiny_base, BuildOptions("full"), tmp_path, command="test")
    assert load_manifest(tmp_path).prefix is None
    assert not [path for path in tmp_path.iterdir() if "fix" in path.name]


def test_a_prefix_and_its_files_go_together(build: Build) -> None:
    content = build("head")[0].model_dump()
    for change in ({"prefix": None}, {"files": {**content["files"], "suffix_checkpoint": None}}):
        with pytest.raises(ValueError, match=r"prefix|no file for suffix_checkpoint"):
            ArtifactManifest.model_validate({**content, **change})


def test_the_estimated_memory_grows_with_what_trains() -> None:
    config = tiny_model().config
    estimates = [
        estimate_memory(config, parse_mode(mode), tokens=5, parameters=1_000, trainable=trained)
        for mode, trained in (("head", 10), ("last-1", 500), ("last-2", 900), ("full", 1_000))
    ]
    assert [estimate.parameters for estimate in estimates] == [4_120, 10_000, 14_800, 16_000]
    steps = [estimate.step_per_image for estimate in estimates]
    assert steps[0] < steps[1] < steps[2] == steps[3]
    assert len({estimate.forward_per_image for estimate in estimates}) == 1


@pytest.mark.parametrize("mode", ["head", "last-1"])
def test_a_whole_task_is_the_same_with_the_split_and_runs_the_frozen_part_once_for_each_image(
    build: Build, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, directory, trainer = build(mode, learning_rate=0.1)
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), np.uint8)
    spec = SPEC.model_copy(update={"epochs": 3, "augmentations": 2})
    task = assigned("u0").model_copy(update={"labels": (0, 1, 2, 3, 4, None)})
    base = trainer.parameters()
    seen: list[int] = []
    computed = trainer.features

    def counted(pixel_values: Any) -> Any:
        if pixel_values.ndim == 4:
            seen.append(len(pixel_values))
        return computed(pixel_values)

    monkeypatch.setattr(trainer, "features", counted)
    given, kind = TaskInputs(task, spec, images, base), open_kind(manifest.kind, manifest.model)
    split = run_task(given, kind, trainer, lambda _: None, time.monotonic)
    whole = run_task(given, kind, whole_trainer(manifest, directory), lambda _: None, time.monotonic)
    assert split.metrics.predictions == whole.metrics.predictions
    assert split.metrics.mismatched_images > 0
    np.testing.assert_allclose(split.delta, whole.delta, atol=1e-5)
    assert sum(seen) == len(images) + 2 * split.metrics.mismatched_images
