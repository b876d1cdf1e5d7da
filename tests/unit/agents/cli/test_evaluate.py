"""``fedbus evaluate`` on the shipped model and images."""

from __future__ import annotations

import json
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
import typer
from safetensors.numpy import save_file
from typer.testing import CliRunner

from agents.audit.model_comparison import ComparisonError, compare_models
from agents.cli.evaluate import evaluate
from agents.runtime.shipped import DEFAULT_ARTIFACTS, DEFAULT_HELD_OUT_DATA
from artifacts.manifest import load_manifest
from data.dataset import load_dataset
from data.errors import ShardError
from data.shards import encode_shard

MANIFEST = load_manifest(DEFAULT_ARTIFACTS)
BASE = np.fromfile(DEFAULT_ARTIFACTS / MANIFEST.files["trainable"].path, "<f4")


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    """The first 200 held-out images, with labels."""
    dataset = load_dataset(DEFAULT_HELD_OUT_DATA)
    path = tmp_path / "shard.safetensors"
    path.write_bytes(encode_shard(dataset.images[:200], dataset.labels[:200]))
    return path


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """Another model: half the base model's trainable parameters."""
    path = tmp_path / "half.f32"
    (BASE / 2).astype("<f4").tofile(path)
    return path


def test_a_folder_and_a_file_of_parameters_are_compared(shard: Path, other: Path):
    result = compare_models(DEFAULT_ARTIFACTS, other, shard, artifacts=DEFAULT_ARTIFACTS)
    assert result.images == 200
    assert 0.55 < result.a.score.accuracy < 0.8
    assert result.a.score != result.b.score
    assert sum((result.both_right, result.only_a_right, result.only_b_right, result.both_wrong)) == 200


def test_a_model_equals_itself_in_every_form(shard: Path, tmp_path: Path):
    tensors = {one.name: BASE[one.offset : one.offset + one.count].reshape(one.shape) for one in MANIFEST.trainable}
    save_file(tensors, tmp_path / "model.safetensors")
    copytree(DEFAULT_ARTIFACTS, tmp_path / "copy")
    for model in (tmp_path / "model.safetensors", tmp_path / "copy", DEFAULT_ARTIFACTS / "trainable.f32"):
        result = compare_models(DEFAULT_ARTIFACTS, model, shard, artifacts=DEFAULT_ARTIFACTS)
        assert result.a.score == result.b.score
        assert result.same_prediction == 200


def test_the_whole_held_out_set_is_compared(other: Path):
    assert compare_models(DEFAULT_ARTIFACTS, other, DEFAULT_HELD_OUT_DATA, artifacts=DEFAULT_ARTIFACTS).images == 2000


def test_the_command_writes_json_and_picture_and_prints_a_table(shard: Path, other: Path, tmp_path: Path):
    app = typer.Typer()
    app.command()(evaluate)
    both = ["--model", str(DEFAULT_ARTIFACTS), "--model", str(other), "--data", str(shard)]
    result = CliRunner().invoke(app, [*both, "-o", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert "accuracy" in result.output
    assert "sneaker" in result.output
    assert json.loads((tmp_path / "out" / "comparison.json").read_text())["images"] == 200
    assert "<svg" in (tmp_path / "out" / "comparison.svg").read_text()
    printed = CliRunner().invoke(app, [*both, "--json"])
    assert json.loads(printed.output)["b"]["name"] == str(other)
    assert CliRunner().invoke(app, both[2:]).exit_code == 2


@pytest.mark.parametrize("content", [b"", b"short", np.zeros(7, "<f4").tobytes(), b"x" * (4 * BASE.size + 1)])
def test_a_file_of_another_size_is_no_model(shard: Path, tmp_path: Path, content: bytes):
    path = tmp_path / "model.f32"
    path.write_bytes(content)
    with pytest.raises(ComparisonError, match="trainable parameters"):
        compare_models(DEFAULT_ARTIFACTS, path, shard, artifacts=DEFAULT_ARTIFACTS)


@pytest.mark.parametrize("name", ["typo", "typo.f32", "typo.onnx", "typo.safetensors"])
def test_what_is_not_there_is_no_model(shard: Path, tmp_path: Path, name: str):
    with pytest.raises(ComparisonError, match="there is no model"):
        compare_models(DEFAULT_ARTIFACTS, tmp_path / name, shard, artifacts=DEFAULT_ARTIFACTS)


def test_parameters_with_other_names_are_no_model(shard: Path, tmp_path: Path):
    path = tmp_path / "model.safetensors"
    save_file({"weight": np.zeros(3, np.float32)}, path)
    with pytest.raises(ComparisonError, match="no tensor"):
        compare_models(DEFAULT_ARTIFACTS, path, shard, artifacts=DEFAULT_ARTIFACTS)


@pytest.mark.parametrize("damage", ["cut", "header", "kind", "empty"])
def test_damaged_safetensors_are_no_model(shard: Path, tmp_path: Path, damage: str):
    path = tmp_path / "model.safetensors"
    save_file({"weight": np.zeros(8, np.float16)}, path)
    whole = path.read_bytes()
    damaged = {"cut": whole[:-1], "header": whole[:9] + b"?" + whole[10:], "kind": whole.replace(b'"F16"', b'"BF16"')}
    size = int.from_bytes(whole[:8], "little")
    damaged["kind"] = (size + 1).to_bytes(8, "little") + damaged["kind"][8:]
    path.write_bytes(damaged.get(damage, b""))
    with pytest.raises(ComparisonError, match="trainable parameters"):
        compare_models(DEFAULT_ARTIFACTS, path, shard, artifacts=DEFAULT_ARTIFACTS)


def test_images_of_another_size_or_without_labels_are_refused(tmp_path: Path):
    path = tmp_path / "shard.safetensors"
    path.write_bytes(encode_shard(np.zeros((2, 8, 8, 1), np.uint8), np.zeros(2, np.int64)))
    with pytest.raises(ComparisonError, match="28 x 28"):
        compare_models(DEFAULT_ARTIFACTS, DEFAULT_ARTIFACTS, path, artifacts=DEFAULT_ARTIFACTS)
    path.write_bytes(encode_shard(np.zeros((2, 28, 28, 3), np.uint8), np.zeros(2, np.int64)))
    with pytest.raises(ShardError, match="3 channels"):
        compare_models(DEFAULT_ARTIFACTS, DEFAULT_ARTIFACTS, path, artifacts=DEFAULT_ARTIFACTS)
    path.write_bytes(encode_shard(np.zeros((2, 28, 28, 1), np.uint8)))
    with pytest.raises(ComparisonError, match="no images with labels"):
        compare_models(DEFAULT_ARTIFACTS, DEFAULT_ARTIFACTS, path, artifacts=DEFAULT_ARTIFACTS)
