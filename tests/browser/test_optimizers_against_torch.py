"""Learning rate, weight decay and gradient clipping take effect in Chromium: a task there does what torch does."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from playwright.async_api import Browser

from agents.core.learning.kinds import open_kind
from agents.core.learning.task import run_task
from artifacts.base_model import load_base
from artifacts.manifest import load_manifest
from artifacts.modes import parse_mode
from artifacts.optimizer import build_optimizer
from artifacts.torch_models import TrainableModel
from tests.browser.recorded import ARTIFACTS, recorded_task
from tests.browser.test_engine_agreement import delta_of, harness
from tests.unit.artifacts.optimizers import DecoupledSgd, OrtAdamW

pytestmark = pytest.mark.asyncio(loop_scope="session")

MODEL = load_manifest(ARTIFACTS)
KIND = open_kind(MODEL.kind, MODEL.model)
Kind = Literal["sgd", "adamw"]
SETTINGS: list[tuple[float, float, float | None]] = [(0.01, 0.0, None), (0.03, 0.0, None), (0.03, 0.5, 0.2)]
"""Learning rate (a tenth of it with AdamW), weight decay, largest norm of the gradient."""


class TorchEngine:
    """The shipped model in torch, with an optimizer of the test."""

    def __init__(self, make: Callable[[list[Any]], Any], clip: float | None) -> None:
        self._manifest = load_manifest(ARTIFACTS)
        base = load_base(str(ARTIFACTS / "base"))
        mode, seed = parse_mode(self._manifest.mode), self._manifest.build.seed
        self._model = TrainableModel(base.model, mode, seed=seed).eval()
        named = dict(self._model.plain_parameters())
        self._tensors = [named[tensor.name] for tensor in self._manifest.trainable]
        self._optimizer, self._clip = make(self._tensors), clip

    def begin(self, base: NDArray[np.float32], learning_rate: float | None) -> None:
        torch.nn.utils.vector_to_parameters(torch.from_numpy(base.copy()), self._tensors)

    def features(self, pixel_values: NDArray[np.float32]) -> NDArray[np.float32]:
        return pixel_values

    def predict(self, pixel_values: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.no_grad():
            logits: NDArray[np.float32] = self._model(torch.from_numpy(pixel_values)).numpy()
        return logits

    def train_step(self, pixel_values: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
        self._optimizer.zero_grad()
        logits = self._model(torch.from_numpy(pixel_values))
        smoothing = self._manifest.label_smoothing
        loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels), label_smoothing=smoothing)
        loss.backward()
        if self._clip is not None:
            torch.nn.utils.clip_grad_norm_(self._tensors, self._clip)
        self._optimizer.step()
        return loss.item()

    def parameters(self) -> NDArray[np.float32]:
        vector: NDArray[np.float32] = torch.nn.utils.parameters_to_vector(self._tensors).detach().numpy().copy()
        return vector


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
async def test_rate_decay_and_clipping_take_effect_as_in_torch(
    chromium: Browser, harness_page: Path, kind: Kind
) -> None:
    settings = [(rate if kind == "sgd" else rate / 10, decay, clip) for rate, decay, clip in SETTINGS]
    recorded = [
        recorded_task(
            # The rate that counts is the task's.
            optimizer=build_optimizer(kind, learning_rate=1.0, weight_decay=decay, clip_norm=clip),
            stateless=kind == "sgd",
            learning_rate=rate,
        )
        for rate, decay, clip in settings
    ]
    answers = await harness(chromium, harness_page, *recorded)
    changes = []
    for task, answer, (rate, decay, clip) in zip(recorded, answers, settings, strict=True):
        reference = DecoupledSgd if kind == "sgd" else OrtAdamW

        def make(tensors: list[Any], of: Any = reference, at: float = rate, shrink: float = decay) -> Any:
            return of(tensors, at, shrink)

        expected = run_task(task.inputs, KIND, TorchEngine(make, clip), lambda done: None, time.monotonic)
        assert expected.metrics.mismatched_images > 0
        changes.append(np.linalg.norm(expected.delta))
        # AdamW divides by the gradient's size, so that the rounding of tiny gradients shows in single parameters.
        assert np.linalg.norm(delta_of(answer) - expected.delta) < 1e-3 * changes[-1]
    # Three different settings, told apart by far more than the tolerance.
    assert changes[1] > 1.5 * changes[0]
    assert abs(changes[2] / changes[1] - 1) > 0.05
