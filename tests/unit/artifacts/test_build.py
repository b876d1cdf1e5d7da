from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from artifacts import self_check
from artifacts.base_model import BaseModel
from artifacts.build import BuildOptions, build_artifacts
from artifacts.errors import ArtifactIntegrityError, ExportError, ManifestError, SelfCheckError, TrainModeError
from artifacts.export import export_forward
from artifacts.manifest import ArtifactManifest, load_manifest
from artifacts.modes import parse_mode
from artifacts.ort_training import NativeTrainer
from artifacts.torch_models import TrainableModel
from tests.unit.artifacts.conftest import Built, tiny_model

Build = Callable[..., Built]
MODES = ("head", "head-weight", "last-1", "last-2", "lora:2", "full")


def batch(count: int, seed: int = 0) -> tuple[Any, Any]:
    generator = np.random.default_rng(seed)
    return generator.standard_normal((count, 3, 8, 8), dtype=np.float32), generator.integers(0, 5, count)


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_agrees_with_torch_in_gradients_and_logits(build: Build, mode: str) -> None:
    manifest, _, _ = build(mode, label_smoothing=0.1)
    assert 0 < manifest.build.max_gradient_error < 1e-5
    assert manifest.build.max_logit_error < 1e-5


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("head", {"classifier.weight", "classifier.bias"}),
        ("head-weight", {"classifier.weight"}),
    ],
)
def test_head_modes_train_the_classifier_alone(build: Build, mode: str, expected: set[str]) -> None:
    assert {tensor.name for tensor in build(mode)[0].trainable} == expected


def test_last_1_trains_the_last_block_the_final_norm_and_the_head(build: Build) -> None:
    names = {tensor.name for tensor in build("last-1")[0].trainable}
    assert {name.split(".")[0] for name in names} == {"vit", "classifier"}
    assert {name.split(".")[1] for name in names if name.startswith("vit.")} == {"layers", "layernorm"}
    assert {name.split(".")[2] for name in names if name.startswith("vit.layers.")} == {"1"}


def test_lora_trains_two_matrices_for_each_of_q_and_v_and_the_real_classifier(build: Build) -> None:
    manifest, _, trainer = build("lora:2")
    shapes = {tensor.name: tensor.shape for tensor in manifest.trainable}
    adapters = {name for name in shapes if ".lora_" in name}
    assert len(adapters) == 2 * 2 * 2
    assert shapes["vit.layers.1.attention.v_proj.lora_A.weight"] == (2, 16)
    assert set(shapes) - adapters == {"classifier.weight", "classifier.bias"}
    # The classifier in the buffer is the one that makes the logits.
    parameters = np.zeros(manifest.trainable_count, np.float32)
    bias = next(tensor for tensor in manifest.trainable if tensor.name == "classifier.bias")
    parameters[bias.offset : bias.offset + bias.count] = [1, 2, 3, 4, 5]
    trainer.load_parameters(parameters)
    np.testing.assert_allclose(trainer.predict(batch(2)[0]), [[1, 2, 3, 4, 5]] * 2, atol=1e-6)


def test_full_trains_every_parameter(build: Build) -> None:
    manifest, _, _ = build("full")
    assert (
        manifest.trainable_count == manifest.model.parameters_total == sum(p.numel() for p in tiny_model().parameters())
    )


def test_the_trainable_file_is_what_the_session_starts_from(build: Build) -> None:
    manifest, directory, trainer = build("lora:2")
    stored = np.fromfile(directory / manifest.files["trainable"].path, dtype="<f4")
    assert np.array_equal(stored, trainer.parameters())


def test_both_models_have_the_same_inputs_and_outputs_and_a_dynamic_batch(build: Build) -> None:
    manifest, directory, trainer = build("lora:2", label_smoothing=0.1)
    training = onnx.load(directory / manifest.files["training_model"].path)
    evaluation = onnx.load(directory / manifest.files["eval_model"].path)
    for model in (training, evaluation):
        assert [value.name for value in model.graph.output][:2] == ["loss", "logits"]
        assert [value.name for value in model.graph.input][:2] == ["pixel_values", "labels"]
        assert model.ir_version <= 10
        assert not [node for node in model.graph.node if node.op_type == "Dropout"]
    for count in (1, 5):
        assert trainer.predict(batch(count)[0]).shape == (count, 5)
        assert np.isfinite(trainer.train_step(*batch(count)))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_is_torchs_cross_entropy_with_label_smoothing(build: Build, smoothing: float) -> None:
    _, _, trainer = build("head", label_smoothing=smoothing)
    pixels, labels = batch(4)
    loss, logits = trainer.evaluate(pixels, labels)
    expected = torch.nn.functional.cross_entropy(
        torch.from_numpy(logits), torch.from_numpy(labels), label_smoothing=smoothing
    )
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    assert trainer.train_step(pixels, labels) == pytest.approx(loss, rel=1e-5)


def test_the_base_model_is_left_as_it_was(tiny_base: BaseModel, build: Build) -> None:
    build("lora:2")
    assert {name: value.sum().item() for name, value in tiny_base.model.state_dict().items()} == {
        name: value.sum().item() for name, value in tiny_model().state_dict().items()
    }
    assert all(parameter.requires_grad for parameter in tiny_base.model.parameters())


def test_building_twice_gives_the_same_bytes(tiny_base: BaseModel, build: Build, tmp_path: Path) -> None:
    first, _, _ = build("lora:2")
    second = build_artifacts(tiny_base, BuildOptions("lora:2"), tmp_path, command="test")
    assert first == second


def test_another_build_into_the_folder_replaces_the_first(tiny_base: BaseModel, tmp_path: Path) -> None:
    build_artifacts(tiny_base, BuildOptions("full"), tmp_path, command="test")
    (tmp_path / "base").mkdir()
    build_artifacts(tiny_base, BuildOptions("head"), tmp_path, command="test")
    assert load_manifest(tmp_path).mode == "head"
    assert not list(tmp_path.glob(".*"))
    assert (tmp_path / "base").is_dir()


def test_a_failed_build_leaves_the_old_artifacts_in_place(
    tiny_base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_artifacts(tiny_base, BuildOptions("head"), tmp_path, command="test")
    monkeypatch.setattr(self_check, "GRADIENT_TOLERANCE", 0.0)
    with pytest.raises(SelfCheckError, match="differ from torch"):
        build_artifacts(tiny_base, BuildOptions("full"), tmp_path, command="test")
    assert load_manifest(tmp_path).mode == "head"
    assert not list(tmp_path.glob(".*"))


def test_the_self_check_sees_swapped_parameters_of_equal_shape(tiny_base: BaseModel, build: Build) -> None:
    manifest, directory, _ = build("lora:2")
    tensors = list(manifest.trainable)
    first, second = (
        next(place for place, tensor in enumerate(tensors) if tensor.name.endswith(f"{part}.lora_B.weight"))
        for part in ("q_proj", "v_proj")
    )
    renamed = {first: tensors[second].name, second: tensors[first].name}
    swapped = [
        tensor.model_copy(update={"name": renamed.get(place, tensor.name)}) for place, tensor in enumerate(tensors)
    ]
    lying = manifest.model_copy(update={"trainable": tuple(swapped)})
    paths = {role: directory / file.path for role, file in manifest.files.items()}
    model = TrainableModel(tiny_base.model, parse_mode("lora:2"), seed=0).eval()
    trainer = NativeTrainer(lying, paths)
    with pytest.raises(SelfCheckError, match="differ from torch"):
        self_check.check_artifacts(trainer, model, trainer.parameters(), label_smoothing=0.0, seed=0)


@pytest.mark.parametrize("changes", [{"qkv_bias": False}, {"hidden_act": "gelu_new"}, {"num_channels": 1}])
def test_other_configurations_build_too(changes: dict[str, Any], tmp_path: Path) -> None:
    channels = changes.get("num_channels", 3)
    base = BaseModel(tiny_model(**changes), "other", (0.5,) * channels, (0.5,) * channels)
    manifest = build_artifacts(base, BuildOptions("last-1", label_smoothing=0.1), tmp_path, command="test")
    assert manifest.build.max_gradient_error < 1e-4


@pytest.mark.parametrize("mode", ["last-3", "lora:17"])
def test_a_mode_beyond_the_model_is_refused(tiny_base: BaseModel, mode: str, tmp_path: Path) -> None:
    with pytest.raises(TrainModeError):
        build_artifacts(tiny_base, BuildOptions(mode), tmp_path, command="test")


@pytest.mark.parametrize("mode", ["", "heads", "last-0", "lora:0", "lora:", "last-1 ", "LORA:8"])
def test_an_unknown_mode_is_refused_with_a_hint(mode: str) -> None:
    with pytest.raises(TrainModeError) as caught:
        parse_mode(mode)
    assert "lora:8" in caught.value.hint


@pytest.mark.parametrize("mode", MODES)
def test_modes_print_as_they_are_written(mode: str) -> None:
    assert str(parse_mode(mode)) == mode


def test_images_that_are_not_square_are_refused(tmp_path: Path) -> None:
    base = BaseModel(tiny_model(image_size=(8, 12)), "wide", (0.5,) * 3, (0.5,) * 3)
    with pytest.raises(ExportError, match="not square"):
        build_artifacts(base, BuildOptions("head"), tmp_path, command="test")


def test_exported_names_are_those_of_the_model(tiny_base: BaseModel) -> None:
    model = TrainableModel(tiny_base.model, parse_mode("lora:2"), seed=0)
    exported = export_forward(model, torch.zeros(2, 3, 8, 8), source="pixel_values")
    names = {tensor.name for tensor in exported.graph.initializer}
    assert names >= set(tiny_base.model.state_dict())


def test_a_damaged_file_is_found_when_loading(build: Build, tmp_path: Path) -> None:
    manifest, directory, _ = build("head")
    for _, file in manifest.files.items():
        (tmp_path / file.path).write_bytes((directory / file.path).read_bytes())
    (tmp_path / "manifest.json").write_text(manifest.model_dump_json())
    assert load_manifest(tmp_path) == manifest
    path = tmp_path / manifest.files["eval_model"].path
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtifactIntegrityError, match="SHA-256"):
        load_manifest(tmp_path)
    path.write_bytes(content[:-1])
    with pytest.raises(ArtifactIntegrityError, match="bytes"):
        load_manifest(tmp_path)
    path.unlink()
    with pytest.raises(ArtifactIntegrityError, match="missing"):
        load_manifest(tmp_path)


def test_a_folder_without_a_manifest_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ManifestError) as caught:
        load_manifest(tmp_path)
    assert "build" in caught.value.hint


def test_a_manifest_whose_tensors_leave_gaps_is_refused(build: Build) -> None:
    manifest, _, _ = build("head")
    content = manifest.model_dump()
    content["trainable"][1]["offset"] += 1
    with pytest.raises(ValueError, match="expected"):
        ArtifactManifest.model_validate(content)


@pytest.mark.parametrize("mode", ["full", "head"])
def test_a_manifest_says_which_engines_have_their_files(build: Build, mode: str) -> None:
    manifest, directory, _ = build(mode)
    assert set(manifest.engines) == {"ort-training"}
    opened = manifest.files_of("ort-training")
    assert "trainable" not in opened
    assert ("prefix_model" in opened) == ("checkpoint" not in opened) == (mode == "head")
    NativeTrainer(manifest, {role: directory / file.path for role, file in opened.items()})


@pytest.mark.parametrize("mode", ["full", "head"])
def test_a_manifest_of_before_offers_what_its_files_show(build: Build, mode: str) -> None:
    manifest = build(mode)[0]
    content = manifest.model_dump()
    del content["engines"], content["kind"]
    content["files"] = {"prefix_model": None, **content["files"]}
    old = ArtifactManifest.model_validate(content)
    assert (old.offered, old.kind) == (manifest.engines, manifest.kind)
    del content["files"]["optimizer_model"]
    assert ArtifactManifest.model_validate(content).offered == {}


def test_an_engine_cannot_be_offered_without_its_files(build: Build) -> None:
    content = build("full")[0].model_dump()
    content["engines"]["another"] = ("step", "checkpoint")
    with pytest.raises(ValueError, match="no file for step"):
        ArtifactManifest.model_validate(content)


def test_a_manifest_cannot_name_files_outside_its_folder(build: Build) -> None:
    content = build("head")[0].model_dump()
    content["files"]["checkpoint"]["path"] = "../checkpoint"
    with pytest.raises(ValueError, match="leaves the artifact folder"):
        ArtifactManifest.model_validate(content)
