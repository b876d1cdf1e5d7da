"""A trained model that is taken out computes in every form what the engine that trained it computes."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from peft import PeftModel
from transformers import ViTForImageClassification, ViTImageProcessor

from agents.audit.exported import open_exported
from artifacts.base_model import BaseModel, load_base
from artifacts.errors import TakeOutError
from artifacts.inference import InferenceModel, inference_model
from artifacts.manifest import ArtifactManifest, artifact_paths
from artifacts.ort_training import NativeTrainer
from artifacts.pixels import pixel_table, to_pixel_values
from artifacts.pretrained import find_config, read_pretrained, write_adapter, write_pretrained
from artifacts.weights import Weights, read_weights

MODES = ("lora:2", "head", "last-1", "full")
Built = tuple[ArtifactManifest, Path, NativeTrainer]
IMAGES = np.random.default_rng(3).integers(0, 256, (6, 8, 8, 3), np.uint8)


class Trained:
    """A built model with other parameters than it began with, and what the engine predicts with them."""

    def __init__(self, built: Built) -> None:
        self.manifest, self.folder, trainer = built
        self.files = artifact_paths(self.manifest, self.folder)
        before = trainer.parameters()
        self.parameters = (before + np.random.default_rng(1).normal(0, 0.2, before.shape)).astype(np.float32)
        trainer.load_parameters(self.parameters)
        table = pixel_table(self.manifest.model.mean, self.manifest.model.std)
        self.pixels = to_pixel_values(IMAGES, table)
        self.logits: NDArray[np.float32] = trainer.predict(self.pixels)

    @property
    def weights(self) -> Weights:
        return read_weights(self.manifest, self.files["checkpoint"], self.parameters)


@pytest.fixture(params=MODES)
def trained(request: pytest.FixtureRequest, build: Callable[..., Built]) -> Trained:
    return Trained(build(request.param))


@pytest.fixture
def adapted(build: Callable[..., Built]) -> Trained:
    return Trained(build("lora:2"))


def config_of(one: Trained) -> dict[str, Any]:
    return find_config(one.manifest, one.weights, ())


def predicted(model: Any, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    with torch.no_grad():
        logits: NDArray[np.float32] = model(pixel_values=torch.from_numpy(pixels)).logits.numpy()
    return logits


def test_the_onnx_model_predicts_what_the_engine_predicts(trained: Trained, tmp_path: Path) -> None:
    path = tmp_path / "inference.onnx"
    path.write_bytes(inference_model(trained.manifest, trained.files["eval_model"], trained.weights, run="shop"))
    model = InferenceModel(path)
    assert model.facts == trained.manifest.model
    np.testing.assert_allclose(model.logits(IMAGES), trained.logits, rtol=1e-5, atol=1e-6)


def test_from_pretrained_loads_the_whole_model(trained: Trained, tmp_path: Path) -> None:
    write_pretrained(tmp_path, trained.manifest, trained.weights, config_of(trained), about="test")
    model, loaded = ViTForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not loaded["missing_keys"]
    assert not loaded["unexpected_keys"]
    assert [model.config.id2label[index] for index in range(5)] == list(trained.manifest.model.classes)
    np.testing.assert_allclose(predicted(model.eval(), trained.pixels), trained.logits, rtol=1e-4, atol=1e-5)
    processed = ViTImageProcessor.from_pretrained(tmp_path)(list(IMAGES), return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(processed, trained.pixels, atol=1e-6)


def test_peft_loads_the_adapter_onto_the_base(adapted: Trained, tiny_base: BaseModel, tmp_path: Path) -> None:
    tiny_base.model.save_pretrained(tmp_path / "base")
    write_adapter(tmp_path, adapted.manifest, adapted.weights, about="test")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        base = ViTForImageClassification.from_pretrained(tmp_path / "base")
        model = PeftModel.from_pretrained(base, tmp_path).eval()
    np.testing.assert_allclose(predicted(model, adapted.pixels), adapted.logits, rtol=1e-4, atol=1e-5)


def test_what_was_taken_out_can_be_opened_again(trained: Trained, tmp_path: Path) -> None:
    write_pretrained(tmp_path, trained.manifest, trained.weights, config_of(trained), about="test")
    model = open_exported(tmp_path, trained.folder)
    assert model is not None
    np.testing.assert_allclose(model.logits(IMAGES), trained.logits, rtol=1e-4, atol=1e-5)


def test_an_adapter_can_be_opened_again(adapted: Trained, tmp_path: Path) -> None:
    write_adapter(tmp_path, adapted.manifest, adapted.weights, about="test")
    model = open_exported(tmp_path, adapted.folder)
    assert model is not None
    np.testing.assert_allclose(model.logits(IMAGES), adapted.logits, rtol=1e-5, atol=1e-6)


def test_artifacts_can_be_built_from_what_was_taken_out(trained: Trained, tmp_path: Path) -> None:
    write_pretrained(tmp_path, trained.manifest, trained.weights, config_of(trained), about="test")
    base = load_base(str(tmp_path))
    assert base.classes == trained.manifest.model.classes
    assert base.licence == trained.manifest.model.licence.lower()
    np.testing.assert_allclose(base.mean, trained.manifest.model.mean)
    np.testing.assert_allclose(base.std, trained.manifest.model.std)


def test_no_adapter_is_written_for_a_mode_without_one(build: Callable[..., Built], tmp_path: Path) -> None:
    head = Trained(build("head"))
    with pytest.raises(TakeOutError, match="no adapter"):
        write_adapter(tmp_path, head.manifest, head.weights, about="test")
    assert not list(tmp_path.iterdir())


def test_older_artifacts_take_their_config_from_the_folder_of_their_base(
    adapted: Trained, tiny_base: BaseModel, tmp_path: Path
) -> None:
    older = adapted.manifest.model_copy(update={"base": {"name": "tiny", "source": "base"}})
    with pytest.raises(TakeOutError, match="do not hold the config") as refused:
        find_config(older, adapted.weights, (tmp_path,))
    assert "--base" in refused.value.hint
    tiny_base.model.save_pretrained(tmp_path / "base")
    for folder in (tmp_path, tmp_path / "base"):
        assert find_config(older, adapted.weights, (folder,))["num_attention_heads"] == 2
    other = json.loads((tmp_path / "base" / "config.json").read_text()) | {"hidden_size": 32}
    (tmp_path / "base" / "config.json").write_text(json.dumps(other))
    with pytest.raises(TakeOutError, match="do not hold the config"):
        find_config(older, adapted.weights, (tmp_path,))


def test_damaged_and_foreign_files_are_refused_in_words(adapted: Trained, tmp_path: Path) -> None:
    for name, content, said in (
        ("a.onnx", b"nothing", "no ONNX model"),
        ("a.onnx", (adapted.folder / "eval_model.onnx").read_bytes(), "does not say what pictures"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(TakeOutError, match=said):
            InferenceModel(tmp_path / name)
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(TakeOutError, match="cannot be read"):
        read_pretrained(tmp_path, adapted.weights)
    write_pretrained(tmp_path, adapted.manifest, adapted.weights, config_of(adapted), about="test")
    wider = adapted.weights | {"classifier.bias": np.zeros(9, np.float32)}
    with pytest.raises(TakeOutError, match="of another model"):
        read_pretrained(tmp_path, wider)
    with pytest.raises(TakeOutError, match="has no tensor"):
        read_pretrained(tmp_path, adapted.weights | {"more": np.zeros(9, np.float32)})
    with pytest.raises(TakeOutError, match="parameters were given"):
        read_weights(adapted.manifest, adapted.files["checkpoint"], adapted.parameters[:-1])
