from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from artifacts.base_model import BaseModel
from artifacts.errors import EngineError
from artifacts.learning_rate import with_learning_rate
from artifacts.manifest import artifact_paths
from artifacts.modes import parse_mode
from artifacts.ort_training import NativeTrainer
from artifacts.torch_models import TrainableModel
from tests.unit.artifacts.conftest import Built
from tests.unit.artifacts.optimizers import DecoupledSgd, OrtAdamW

Build = Callable[..., Built]


def batch(seed: int) -> tuple[Any, Any]:
    generator = np.random.default_rng(seed)
    return generator.standard_normal((4, 3, 8, 8), dtype=np.float32), generator.integers(0, 5, 4)


def torch_steps(
    base: BaseModel, trainer: NativeTrainer, make: Callable[[list[Any]], Any], clip: float | None, steps: int
) -> NDArray[np.float32]:
    """The parameters after some steps of a torch optimizer, as the contiguous buffer."""
    model = TrainableModel(base.model, parse_mode(trainer.manifest.mode), seed=0).eval()
    named = dict(model.plain_parameters())
    tensors = [named[tensor.name] for tensor in trainer.manifest.trainable]
    optimizer = make(tensors)
    for seed in range(steps):
        pixels, labels = batch(seed)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(torch.from_numpy(pixels)), torch.from_numpy(labels)).backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(tensors, clip)
        optimizer.step()
    buffer: NDArray[np.float32] = torch.nn.utils.parameters_to_vector(tensors).detach().numpy()
    return buffer


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("rate", [0.02, 0.3])
def test_sgd_takes_the_steps_of_torch(
    build: Build, tiny_base: BaseModel, rate: float, decay: float, clip: float | None
) -> None:
    _, _, trainer = build("last-1", learning_rate=rate, weight_decay=decay, clip_norm=clip)
    for seed in range(4):
        trainer.train_step(*batch(seed))

    def decoupled(tensors: list[Any]) -> Any:
        return DecoupledSgd(tensors, rate, decay)

    np.testing.assert_allclose(trainer.parameters(), torch_steps(tiny_base, trainer, decoupled, clip, 4), atol=2e-6)


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("rate", [1e-3, 1e-2])
def test_adamw_takes_the_steps_of_its_definition(
    build: Build, tiny_base: BaseModel, rate: float, decay: float, clip: float | None
) -> None:
    _, _, trainer = build("head", optimizer="adamw", learning_rate=rate, weight_decay=decay, clip_norm=clip)
    for seed in range(4):
        trainer.train_step(*batch(seed))

    def adamw(tensors: list[Any]) -> Any:
        return OrtAdamW(tensors, rate, decay)

    np.testing.assert_allclose(trainer.parameters(), torch_steps(tiny_base, trainer, adamw, clip, 4), atol=1e-6)


def test_adamw_takes_nearly_the_steps_of_torch(build: Build, tiny_base: BaseModel) -> None:
    _, _, trainer = build("head", optimizer="adamw", learning_rate=1e-2, weight_decay=0.1)
    for seed in range(4):
        trainer.train_step(*batch(seed))

    def adamw(tensors: list[Any]) -> Any:
        return torch.optim.AdamW(tensors, lr=1e-2, weight_decay=0.1, eps=1e-6)

    # torch adds epsilon after its bias correction and decays before the step.
    np.testing.assert_allclose(trainer.parameters(), torch_steps(tiny_base, trainer, adamw, None, 4), atol=2e-4)


def test_a_new_learning_rate_takes_effect(build: Build) -> None:
    manifest, directory, trainer = build("head", learning_rate=0.1)
    template = (directory / manifest.files["optimizer_model"].path).read_bytes()
    start = trainer.parameters()
    trainer.train_step(*batch(0))
    fast_step = trainer.parameters() - start
    trainer.load_parameters(start)
    trainer.set_optimizer(with_learning_rate(template, manifest.optimizer.learning_rate_initializer, 0.01))
    trainer.train_step(*batch(0))
    np.testing.assert_allclose(10 * (trainer.parameters() - start), fast_step, atol=1e-6)


def test_sgd_remembers_nothing_from_step_to_step(build: Build) -> None:
    _, _, trainer = build("last-1", learning_rate=0.1)
    start = trainer.parameters()
    trainer.train_step(*batch(1))
    alone = trainer.parameters()
    for seed in range(2, 6):
        trainer.train_step(*batch(seed))
    trainer.load_parameters(start)
    trainer.reset_optimizer()
    trainer.train_step(*batch(1))
    assert np.array_equal(trainer.parameters(), alone)


def test_resetting_adamw_forgets_its_moments_and_keeps_the_parameters(build: Build) -> None:
    _, _, trainer = build("head", optimizer="adamw", learning_rate=0.01)
    start = trainer.parameters()
    trainer.train_step(*batch(1))
    alone = trainer.parameters()
    trainer.load_parameters(start)
    trainer.train_step(*batch(1))
    assert not np.array_equal(trainer.parameters(), alone)
    trainer.load_parameters(start)
    trainer.reset_optimizer()
    assert np.array_equal(trainer.parameters(), start)
    trainer.train_step(*batch(1))
    assert np.array_equal(trainer.parameters(), alone)


def test_changing_the_rate_of_adamw_starts_its_state_afresh(build: Build) -> None:
    manifest, directory, trainer = build("head", optimizer="adamw", learning_rate=0.01)
    template = (directory / manifest.files["optimizer_model"].path).read_bytes()
    start = trainer.parameters()
    trainer.train_step(*batch(1))
    alone = trainer.parameters()
    trainer.load_parameters(start)
    trainer.set_optimizer(template)
    trainer.train_step(*batch(1))
    assert np.array_equal(trainer.parameters(), alone)


def test_parameters_come_back_as_they_were_loaded(build: Build) -> None:
    manifest, _, trainer = build("lora:2")
    values = np.arange(manifest.trainable_count, dtype=np.float32)
    trainer.load_parameters(values)
    assert np.array_equal(trainer.parameters(), values)


def test_wrong_input_is_refused_before_it_reaches_onnxruntime(build: Build) -> None:
    manifest, _, trainer = build("head")
    pixels, labels = batch(0)
    with pytest.raises(EngineError, match="parameters are"):
        trainer.load_parameters(np.zeros(manifest.trainable_count + 1, np.float32))
    for wrong in (pixels[:, :1], pixels.astype(np.float64), pixels[:0], pixels[0]):
        with pytest.raises(EngineError, match="a batch is"):
            trainer.predict(wrong)
    for bad in (labels[:-1], labels.astype(np.int32), labels + 5, labels - 9):
        with pytest.raises(EngineError, match="labels"):
            trainer.train_step(pixels, bad)


def test_broken_artifacts_are_reported_as_such(build: Build, tmp_path: Path) -> None:
    manifest, directory, _ = build("full")
    paths = artifact_paths(manifest, directory)
    broken = tmp_path / "broken"
    broken.write_bytes(b"not an artifact")
    for role in ("training_model", "checkpoint", "optimizer_model"):
        with pytest.raises(EngineError):
            NativeTrainer(manifest, {**paths, role: broken})
    with pytest.raises(EngineError, match="checkpoint"):
        NativeTrainer(manifest, {role: path for role, path in paths.items() if role != "checkpoint"})
    split, directory, _ = build("head")
    with pytest.raises(EngineError, match="onnxruntime cannot open"):
        NativeTrainer(split, {**artifact_paths(split, directory), "prefix_model": broken})
    other, _, _ = build("lora:2")
    with pytest.raises(EngineError, match="manifest says otherwise"):
        NativeTrainer(other, paths)
