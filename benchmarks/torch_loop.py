"""The default task as a plain loop in one process and one thread: the reference that fedbus is measured against.

`python -m benchmarks.torch_loop --rounds 10 --json` does what a run does, without events, gateway or browsers: each of
100 users predicts 20 images in one batch, trains each mismatch with its 7 images in one step of SGD, the updates are
averaged, and the new model is evaluated on the held-out images. `--engine native` trains with onnxruntime instead.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from agents.core.labels.sources import simulated_labels
from agents.core.learning.augment import augment, default_augmentation
from artifacts.base_model import load_base
from artifacts.default_task import DEFAULT_DIRECTORY, HELD_OUT
from artifacts.learning_rate import with_learning_rate
from artifacts.manifest import ArtifactManifest, artifact_paths, load_manifest
from artifacts.modes import parse_mode
from artifacts.ort_training import NativeTrainer
from artifacts.pixels import pixel_table, to_pixel_values
from artifacts.torch_models import TrainableModel
from data.dataset import load_dataset
from data.fashion_mnist import HELD_OUT as SHIPPED_HELD_OUT
from data.fashion_mnist import USERS
from data.fashion_mnist_source import DEFAULT_SOURCE, load_split
from data.partition import partition

COPIES = 6
ERROR_RATE = 0.05


class Engine(Protocol):
    """What the loop needs of an engine; parameters are the contiguous trainable buffer, float32 [n]."""

    def load_parameters(self, parameters: NDArray[np.float32]) -> None:
        """Set the trainable parameters."""

    def parameters(self) -> NDArray[np.float32]:
        """Return a copy of the trainable parameters."""

    def predict(self, pixel_values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return logits."""

    def train_step(self, pixel_values: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
        """Take one optimizer step and return its loss."""

    def set_learning_rate(self, learning_rate: float) -> None:
        """Use this rate from now on."""


class TorchEngine:
    """The same model in torch, one thread."""

    def __init__(self, manifest: ArtifactManifest, directory: Path) -> None:
        torch.set_num_threads(1)
        base = load_base(str(directory / "base"))
        self._model = TrainableModel(base.model, parse_mode(manifest.mode), seed=manifest.build.seed).eval()
        named = dict(self._model.plain_parameters())
        self._tensors = [named[tensor.name] for tensor in manifest.trainable]
        self._smoothing = manifest.label_smoothing
        self._optimizer = torch.optim.SGD(self._tensors, lr=manifest.optimizer.learning_rate)

    def load_parameters(self, parameters: NDArray[np.float32]) -> None:
        """Set the trainable parameters."""
        torch.nn.utils.vector_to_parameters(torch.from_numpy(parameters.copy()), self._tensors)

    def parameters(self) -> NDArray[np.float32]:
        """Return a copy of the trainable parameters."""
        vector: NDArray[np.float32] = torch.nn.utils.parameters_to_vector(self._tensors).detach().numpy().copy()
        return vector

    def predict(self, pixel_values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return logits."""
        with torch.no_grad():
            logits: NDArray[np.float32] = self._model(torch.from_numpy(pixel_values)).numpy()
        return logits

    def train_step(self, pixel_values: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
        """Take one optimizer step and return its loss."""
        logits = self._model(torch.from_numpy(pixel_values))
        loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels), label_smoothing=self._smoothing)
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        return loss.item()

    def set_learning_rate(self, learning_rate: float) -> None:
        """Use this rate from now on."""
        self._optimizer.param_groups[0]["lr"] = learning_rate


class NativeEngine(NativeTrainer):
    """onnxruntime's training session, one thread."""

    def __init__(self, manifest: ArtifactManifest, directory: Path) -> None:
        super().__init__(manifest, artifact_paths(manifest, directory), threads=1)
        self._template = (directory / manifest.files["optimizer_model"].path).read_bytes()

    def set_learning_rate(self, learning_rate: float) -> None:
        """Use this rate from now on."""
        initializer = self.manifest.optimizer.learning_rate_initializer
        self.set_optimizer(with_learning_rate(self._template, initializer, learning_rate))


@dataclass(frozen=True)
class User:
    """A user's images, uint8 [n, height, width, channels], and the labels that the labeller gave them, int64 [n]."""

    name: str
    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class Round:
    """One round's figures; `seconds` covers the users' work, the average and the evaluation."""

    round: int
    accuracy: float
    mismatches: int
    seconds: float


@dataclass(frozen=True)
class Plan:
    """How a run trains; round r (1, 2, …) has the rate learning_rate * decay ** (r - 1)."""

    rounds: int = 10
    seed: int = 0
    learning_rate: float = 0.03
    decay: float = 0.75
    weigh_by: str = "examples"


def run(
    engine: Engine,
    initial: NDArray[np.float32],
    table: NDArray[np.float32],
    users: Sequence[User],
    held_out: tuple[NDArray[np.uint8], NDArray[np.int64]],
    plan: Plan,
) -> Iterator[Round]:
    """Yield the base model's accuracy as round 0 and then each round's figures."""
    pixels, truth = to_pixel_values(held_out[0], table), held_out[1]
    own_pixels = [to_pixel_values(user.images, table) for user in users]
    model = initial
    engine.load_parameters(model)
    yield Round(0, _accuracy(engine, pixels, truth), 0, 0.0)
    for number in range(1, plan.rounds + 1):
        started = time.perf_counter()
        engine.set_learning_rate(plan.learning_rate * plan.decay ** (number - 1))
        total, weights, mismatches = np.zeros(len(model)), 0.0, 0
        for user, mine in zip(users, own_pixels, strict=True):
            trained = _train(engine, model, user, mine, table, _key(plan.seed, user.name, number))
            weight = len(user.images) if plan.weigh_by == "examples" else trained
            total += weight * (engine.parameters().astype(np.float64) - model)
            weights += weight
            mismatches += trained
        model = (model + total / max(weights, 1.0)).astype(np.float32)
        engine.load_parameters(model)
        accuracy = _accuracy(engine, pixels, truth)
        yield Round(number, accuracy, mismatches, time.perf_counter() - started)


def _train(
    engine: Engine,
    model: NDArray[np.float32],
    user: User,
    pixels: NDArray[np.float32],
    table: NDArray[np.float32],
    seed: int,
) -> int:
    """Do one user's task and return the number of images trained on."""
    engine.load_parameters(model)
    wrong = np.flatnonzero(engine.predict(pixels).argmax(axis=1) != user.labels)
    batches = augment(user.images, wrong, copies=COPIES, seed=seed, spec=default_augmentation())
    for batch, image in zip(batches, wrong, strict=True):
        engine.train_step(to_pixel_values(batch, table), np.repeat(user.labels[image], len(batch)))
    return len(wrong)


def _accuracy(engine: Engine, pixels: NDArray[np.float32], truth: NDArray[np.int64]) -> float:
    return float(np.mean(engine.predict(pixels).argmax(axis=1) == truth))


def _key(seed: int, what: str, number: int) -> int:
    """32 bits for a user's augmentation in a round, as the dispatcher draws them."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{number}/{what}".encode()).digest()[:4], "big")


def load_users(count: int, per_user: int, seed: int) -> list[User]:
    """Return the users of the default task with their simulated labels."""
    dataset = load_dataset(USERS)
    users = []
    for number, indices in enumerate(partition(dataset, count, per_user, "iid", seed=seed)):
        name = f"user-{number:03d}"
        truth = dataset.labels[indices]
        given = simulated_labels(truth.tolist(), len(dataset.classes), error_rate=ERROR_RATE, seed=seed, user=name)
        users.append(User(name, dataset.images[indices], np.array(given, dtype=np.int64)))
    return users


def load_held_out(name: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return images and labels of the shipped part B, or of part A from the files of Fashion-MNIST."""
    if name == "B":
        dataset = load_dataset(SHIPPED_HELD_OUT)
        return dataset.images, dataset.labels
    split = load_split("test", DEFAULT_SOURCE)
    return split.images[HELD_OUT[name]], split.labels[HELD_OUT[name]]


def main() -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--users", type=int, default=100)
    parser.add_argument("--engine", choices=("torch", "native"), default="torch")
    parser.add_argument("--held-out", choices=tuple(HELD_OUT), default="B", help="A: to choose on; B: to report")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--learning-rate", type=float, default=0.03)
    parser.add_argument("--decay", type=float, default=0.75)
    parser.add_argument("--weigh-by", choices=("examples", "trained"), default="examples")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    given = parser.parse_args()
    manifest = load_manifest(DEFAULT_DIRECTORY)
    engine: Engine = (TorchEngine if given.engine == "torch" else NativeEngine)(manifest, DEFAULT_DIRECTORY)
    initial = np.fromfile(DEFAULT_DIRECTORY / manifest.files["trainable"].path, dtype="<f4")
    plan = Plan(given.rounds, given.seed, given.learning_rate, given.decay, given.weigh_by)
    table = pixel_table(manifest.model.mean, manifest.model.std)
    rounds = []
    users, held_out = load_users(given.users, 20, given.seed), load_held_out(given.held_out)
    for row in run(engine, initial, table, users, held_out, plan):
        rounds.append(row)
        if not given.json:
            print(
                f"round {row.round:2d}  accuracy {row.accuracy:.4f}  {row.mismatches:4d} trained  {row.seconds:.2f} s"
            )
    if given.json:
        print(
            json.dumps({"engine": given.engine, "held_out": given.held_out, "rounds": [asdict(row) for row in rounds]})
        )


if __name__ == "__main__":
    main()
