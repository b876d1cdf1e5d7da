"""The build's proof: freshly written artifacts compute what the torch model computes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from artifacts.errors import SelfCheckError
from artifacts.manifest import ArtifactManifest
from artifacts.optimizer import build_optimizer
from artifacts.ort_training import NativeTrainer
from artifacts.torch_models import TrainableModel

# float32 sums in another order differ by about 1e-6; a wrong graph or a swapped tensor by far more.
GRADIENT_TOLERANCE = LOGIT_TOLERANCE = 1e-4
# Parameters move by rate * gradient; so large a rate makes the rounding of the parameters themselves negligible.
_PROBE_RATE = 1024.0
_BATCH = 3


@dataclass(frozen=True)
class Agreement:
    """How far artifacts and torch differ.

    `gradient`: largest L2 norm of a tensor's difference over the norm of the whole gradient (some tensors, such as
    the bias of k, have a gradient of zero). `logit`: largest difference over the largest magnitude.
    """

    gradient: float
    logit: float


def check_artifacts(
    trainer: NativeTrainer,
    reference: TrainableModel,
    initial: NDArray[np.float32],
    *,
    label_smoothing: float,
    seed: int,
) -> Agreement:
    """Return the agreement, at the initial parameters (logits) and at perturbed ones (gradients of every tensor).

    The trainer's optimizer is replaced; its parameters and the reference's are changed. Raises SelfCheckError when the
    buffer is laid out otherwise than `initial`, float32 [trainable_count], or a difference exceeds its tolerance.
    """
    if not np.array_equal(trainer.parameters(), initial):
        raise SelfCheckError("the training session lays out its parameters in another order than the manifest")
    model = trainer.manifest.model
    generator = np.random.default_rng(seed)
    shape = (_BATCH, model.channels, model.image_size, model.image_size)
    pixels = generator.standard_normal(shape, dtype=np.float32)
    labels = generator.integers(0, len(model.classes), _BATCH)
    _load(trainer.manifest, reference, initial)
    with torch.no_grad():
        expected = reference(torch.from_numpy(pixels[:2])).numpy()
    logit = float(np.abs(trainer.predict(pixels[:2]) - expected).max() / max(np.abs(expected).max(), 1e-9))

    # LoRA starts where half of its gradients vanish, so the gradients are compared somewhere else.
    perturbed = initial + np.float32(0.02) * generator.standard_normal(len(initial), dtype=np.float32)
    expected = _reference_gradient(trainer.manifest, reference, perturbed, pixels, labels, label_smoothing)
    difference = _gradient(trainer, perturbed, pixels, labels) - expected
    spans = [slice(tensor.offset, tensor.offset + tensor.count) for tensor in trainer.manifest.trainable]
    largest = max(float(np.linalg.norm(difference[span])) for span in spans)
    gradient = largest / max(float(np.linalg.norm(expected)), 1e-9)
    if not (logit <= LOGIT_TOLERANCE and gradient <= GRADIENT_TOLERANCE):
        raise SelfCheckError(
            f"artifacts differ from torch: logits by {logit:.2g}, gradients by {gradient:.2g}",
            hint="this is a defect of the export; report the model's configuration",
        )
    return Agreement(gradient=gradient, logit=logit)


def _gradient(
    trainer: NativeTrainer, parameters: NDArray[np.float32], pixels: NDArray[np.float32], labels: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the gradient as what one step of plain SGD takes away, over its rate."""
    trainer.set_optimizer(build_optimizer("sgd", learning_rate=_PROBE_RATE))
    trainer.load_parameters(parameters)
    trainer.train_step(pixels, labels)
    return (parameters.astype(np.float64) - trainer.parameters()) / _PROBE_RATE


def _load(
    manifest: ArtifactManifest, reference: TrainableModel, parameters: NDArray[np.float32]
) -> dict[str, torch.nn.Parameter]:
    """Put the buffer into the torch model and return its parameters by name."""
    named = dict(reference.plain_parameters())
    with torch.no_grad():
        for tensor in manifest.trainable:
            values = parameters[tensor.offset : tensor.offset + tensor.count].reshape(tensor.shape)
            named[tensor.name].copy_(torch.from_numpy(values))
    return named


def _reference_gradient(
    manifest: ArtifactManifest,
    reference: TrainableModel,
    parameters: NDArray[np.float32],
    pixels: NDArray[np.float32],
    labels: NDArray[np.int64],
    label_smoothing: float,
) -> NDArray[np.float64]:
    named = _load(manifest, reference, parameters)
    reference.zero_grad()
    loss = torch.nn.functional.cross_entropy(
        reference(torch.from_numpy(pixels)), torch.from_numpy(labels), label_smoothing=label_smoothing
    )
    loss.backward()
    gradients = [named[tensor.name].grad for tensor in manifest.trainable]
    parts = [np.zeros(0) if gradient is None else gradient.numpy().reshape(-1) for gradient in gradients]
    return np.concatenate(parts).astype(np.float64)
