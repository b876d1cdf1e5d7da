"""What each encoding of updates costs: bytes, error of the round's mean, and accuracy on the default task.

Runs the default task in one process with the native engine: every user's update goes through the encoding and back,
as it does between client and aggregator.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agents.cli.run_setup import user_name
from agents.core.labels.sources import simulated_labels
from agents.core.learning.augment import default_augmentation
from agents.core.learning.decoding import decode_update
from agents.core.learning.encodings import encode_update
from agents.core.learning.fixed_point import FixedPointSum
from agents.core.learning.kinds import open_kind
from agents.core.learning.task import TaskInputs, run_task
from agents.engines import open_engine
from agents.runtime.shipped import DEFAULT_ARTIFACTS, DEFAULT_HELD_OUT_DATA, DEFAULT_USERS_DATA
from agents.words.events import TaskAssigned
from agents.words.run_config import TaskSpec
from artifacts.manifest import artifact_paths, load_manifest
from benchmarks.common import report
from bus.words.values import Ref
from data.dataset import load_dataset
from data.partition import partition

ENCODINGS = ("float32", "float16", "int8", "topk:0.25", "topk:0.1", "topk:0.01")
REF = Ref(name="sha256-" + "0" * 64, size=0, sha256="0" * 64)


@dataclass(frozen=True)
class Outcome:
    """What a run with one encoding gave: bytes of an update, mean update of round 1, and the final accuracy."""

    size: int
    first_mean: NDArray[np.float64]
    accuracy: float


def run(encoding: str, rounds: int, users: int) -> Outcome:
    """The default task with this encoding."""
    manifest = load_manifest(DEFAULT_ARTIFACTS)
    paths = artifact_paths(manifest, DEFAULT_ARTIFACTS)
    engine, kind = open_engine(manifest, paths), open_kind(manifest.kind, manifest.model)
    dataset, held_out = load_dataset(DEFAULT_USERS_DATA), load_dataset(DEFAULT_HELD_OUT_DATA)
    owned = partition(dataset, users, 20, "in-order", seed=0)
    model = np.fromfile(paths["trainable"], "<f4").astype(np.float32)
    first, size = np.zeros(len(model)), 0
    for number in range(1, rounds + 1):
        rate = manifest.optimizer.learning_rate * 0.75 ** (number - 1)
        spec = TaskSpec(
            run="bench",
            round=number,
            artifacts=REF,
            base_model=REF,
            learning_rate=rate,
            epochs=1,
            augmentations=6,
            augmentation=default_augmentation(),
            encoding=encoding,
        )
        total = FixedPointSum(len(model))
        for user, indices in enumerate(owned):
            name, truth = user_name(user, users), dataset.labels[indices].tolist()
            labels = simulated_labels(truth, len(dataset.classes), error_rate=0.05, seed=0, user=name)
            seed = number * 100_000 + user
            task = TaskAssigned(run="bench", round=number, user=name, shard=REF, labels=labels, spec=REF, seed=seed)
            given = TaskInputs(task, spec, dataset.images[indices], model)
            result = run_task(given, kind, engine, lambda _: None, time.monotonic)
            data = encode_update(result.delta, encoding)
            size = len(data)
            total.add(decode_update(data, encoding, len(model)), result.metrics.examples)
        updated = total.applied_to(model)
        if number == 1:
            first = updated.astype(np.float64) - model
        model = updated
    engine.begin(model, None)
    outputs = engine.predict(engine.features(kind.inputs(held_out.images)))
    return Outcome(size, first, kind.scores(outputs, held_out.labels).score.accuracy)


def main() -> None:
    """Prints one table for each encoding and writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--users", type=int, default=100)
    arguments = parser.parse_args()
    plain = run("float32", arguments.rounds, arguments.users)
    for encoding in ENCODINGS:
        found = plain if encoding == "float32" else run(encoding, arguments.rounds, arguments.users)
        error = np.linalg.norm(found.first_mean - plain.first_mean) / np.linalg.norm(plain.first_mean)
        report(
            f"encoding_{encoding.replace(':', '_').replace('.', '_')}",
            ours=found.size,
            reference=plain.size,
            unit="bytes of an update",
            goal="printed: size, and the error that the encoding adds",
            relative_error_of_the_mean=float(error),
            accuracy=found.accuracy,
            accuracy_float32=plain.accuracy,
            rounds=arguments.rounds,
        )


if __name__ == "__main__":
    main()
