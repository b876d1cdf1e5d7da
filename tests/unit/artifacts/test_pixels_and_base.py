from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from transformers import ViTConfig, ViTImageProcessor

from artifacts.base_model import BaseModel, load_base, with_classes
from artifacts.base_training import RARE_CLASSES, BaseTraining, base_indices
from artifacts.build import BuildOptions, build_artifacts
from artifacts.default_task import DEFAULT_DIRECTORY
from artifacts.errors import ExportError
from artifacts.manifest import artifact_paths, load_manifest
from artifacts.ort_training import NativeTrainer
from artifacts.pixels import pixel_table, to_pixel_values
from data.dataset import load_dataset
from data.fashion_mnist import HELD_OUT
from tests.unit.artifacts.conftest import tiny_model


def test_pixel_values_are_those_of_the_hugging_face_processor() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    processor = ViTImageProcessor(image_mean=mean, image_std=std, do_resize=False)
    expected = processor(images=list(images), return_tensors="np").pixel_values
    found = to_pixel_values(images, pixel_table(mean, std))
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_the_pixel_table_is_rounded_once_from_float64() -> None:
    table = pixel_table([0.485], [0.229])
    assert table.shape == (1, 256)
    assert table[0, 77] == np.float32((77 / 255 - 0.485) / 0.229)


def test_a_saved_model_loads_with_its_processor_settings_and_licence(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    settings = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7], "rescale_factor": 1 / 255}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    (tmp_path / "README.md").write_text("---\ntags:\n- vision\nlicense: apache-2.0\n---\n# Tiny\n")
    base = load_base(str(tmp_path))
    assert (base.mean, base.std) == ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    assert base.licence == "apache-2.0"
    assert base.classes == ("ant", "bee", "cat", "dog", "eel")


def test_a_model_without_processor_settings_gets_those_that_vit_assumes(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    base = load_base(str(tmp_path))
    assert (base.mean, base.std, base.licence) == ((0.5,) * 3, (0.5,) * 3, "unknown")


@pytest.mark.parametrize(
    ("settings", "mean", "std"),
    [
        ({"do_normalize": False}, 0.0, 1.0),
        ({"rescale_factor": 1 / 127.5, "image_mean": 1.0, "image_std": 1.0}, 0.5, 0.5),
        ({"do_rescale": False, "image_mean": 127.5, "image_std": 127.5}, 0.5, 0.5),
    ],
)
def test_other_ways_to_scale_become_a_mean_and_a_std(
    settings: dict[str, object], mean: float, std: float, tmp_path: Path
) -> None:
    tiny_model().save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    base = load_base(str(tmp_path))
    assert base.mean == pytest.approx((mean,) * 3)
    assert base.std == pytest.approx((std,) * 3)


def test_a_folder_without_a_model_is_refused_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(ExportError) as caught:
        load_base(str(tmp_path))
    assert "save_pretrained" in caught.value.hint


def test_a_fresh_head_keeps_the_body_and_names_the_new_classes(tiny_base: BaseModel, tmp_path: Path) -> None:
    base = with_classes(tiny_base, ["cat", "not a cat"], seed=3)
    again = with_classes(tiny_base, ["cat", "not a cat"], seed=3)
    assert base.classes == ("cat", "not a cat")
    assert base.model.classifier.weight.equal(again.model.classifier.weight)
    assert base.model.vit.layernorm.weight.equal(tiny_base.model.vit.layernorm.weight)
    manifest = build_artifacts(base, BuildOptions("head"), tmp_path, command="test")
    assert manifest.model.classes == ("cat", "not a cat")
    assert manifest.trainable_count == 2 * 16 + 2


def test_fresh_classes_of_one_name_are_told_apart_by_their_ids(tiny_base: BaseModel) -> None:
    base = with_classes(tiny_base, ["crane", "lion", "crane"], seed=0)
    assert base.classes == ("crane (0)", "lion", "crane (2)")
    assert base.model.config.label2id == {"crane (0)": 0, "lion": 1, "crane (2)": 2}


@pytest.mark.parametrize("classes", [[], ["one"], ["a", " "]])
def test_useless_class_lists_are_refused(tiny_base: BaseModel, classes: list[str]) -> None:
    with pytest.raises(ExportError, match="class names"):
        with_classes(tiny_base, classes, seed=0)


def test_the_base_training_sees_rare_classes_fifteen_times() -> None:
    labels = np.random.default_rng(0).integers(0, 10, 20_000)
    chosen = labels[base_indices(labels, BaseTraining())]
    counts = np.bincount(chosen, minlength=10)
    assert all(counts[label] == 15 for label in RARE_CLASSES)
    assert all(counts[label] > 1_000 for label in set(range(10)) - set(RARE_CLASSES))


def test_the_shipped_artifacts_are_whole_and_know_what_the_default_task_says() -> None:
    manifest = load_manifest(DEFAULT_DIRECTORY)
    assert (manifest.mode, manifest.label_smoothing, manifest.optimizer.stateless) == ("lora:8", 0.1, True)
    assert manifest.trainable_count == 8_842
    trainer = NativeTrainer(manifest, artifact_paths(manifest, DEFAULT_DIRECTORY))
    held_out = load_dataset(HELD_OUT)
    pixels = to_pixel_values(held_out.images, pixel_table(manifest.model.mean, manifest.model.std))
    right = trainer.predict(pixels).argmax(axis=1) == held_out.labels
    assert right.mean() == pytest.approx(0.6785, abs=0.002)
    sneaker = manifest.model.classes.index("sneaker")
    assert right[held_out.labels == sneaker].mean() < 0.2


def test_the_shipped_artifacts_stay_under_five_megabytes() -> None:
    assert sum(path.stat().st_size for path in DEFAULT_DIRECTORY.rglob("*") if path.is_file()) < 5_000_000
    assert ViTConfig.from_pretrained(DEFAULT_DIRECTORY / "base").num_hidden_layers == 4
