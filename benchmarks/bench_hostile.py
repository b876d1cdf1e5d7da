"""What hostile clients cost the default task, with and without clipping to a multiple of the round's median norm.

Runs the default task in this process with the native engine. Some of the users send something else than what they
trained, with the weight of an honest user; the mean is made as the aggregator makes it.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from agents.cli.options import CLIP_TO_MEDIAN
from agents.cli.run_setup import user_name
from agents.core.labels.sources import simulated_labels
from agents.core.learning.augment import default_augmentation
from agents.core.learning.clipping import clip_factor, median_limit
from agents.core.learning.contracts import Engine, TaskKind
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

REF = Ref(name="sha256-" + "0" * 64, size=0, sha256="0" * 64)
IMAGES = 20
Vector = NDArray[np.float32]
Attack = Callable[[Vector, Vector, np.random.Generator], Vector]
"""What is sent in place of an honest update, by somebody who knows it and the mean of all honest ones."""


def huge(own: Vector, _mean: Vector, _random: np.random.Generator) -> Vector:
    """The same large value everywhere."""
    return np.full_like(own, 1e3)


def flipped(own: Vector, _mean: Vector, _random: np.random.Generator) -> Vector:
    """A hundred times back from where training leads."""
    return -100 * own


def noise(own: Vector, _mean: Vector, random: np.random.Generator) -> Vector:
    """Nothing but noise, the same deviation everywhere."""
    return random.standard_normal(own.size).astype(np.float32)


def against(_own: Vector, mean: Vector, _random: np.random.Generator) -> Vector:
    """All together straight back from where the honest ones lead."""
    return -100 * mean


ATTACKS: dict[str, Attack] = {one.__name__: one for one in (huge, flipped, noise, against)}


@dataclass(frozen=True)
class Round:
    """What all users of a round start from."""

    number: int
    users: int
    model: Vector = field(repr=False)


@functools.cache
def opened() -> tuple[Engine, TaskKind]:
    """This process's engine."""
    manifest = load_manifest(DEFAULT_ARTIFACTS)
    return open_engine(manifest, artifact_paths(manifest, DEFAULT_ARTIFACTS)), open_kind(manifest.kind, manifest.model)


@functools.cache
def owned(users: int) -> list[tuple[NDArray[np.uint8], tuple[int | None, ...]]]:
    """Images and labels of each user."""
    dataset = load_dataset(DEFAULT_USERS_DATA)
    shares = partition(dataset, users, IMAGES, "in-order", seed=0)
    labels = (
        simulated_labels(
            dataset.labels[share].tolist(), len(dataset.classes), error_rate=0.05, seed=0, user=user_name(user, users)
        )
        for user, share in enumerate(shares)
    )
    return [(dataset.images[share], one) for share, one in zip(shares, labels, strict=True)]


def trained(given: Round, user: int) -> Vector:
    """The honest update of a user."""
    engine, kind = opened()
    images, labels = owned(given.users)[user]
    spec = TaskSpec(
        run="bench",
        round=given.number,
        artifacts=REF,
        base_model=REF,
        learning_rate=load_manifest(DEFAULT_ARTIFACTS, verify=False).optimizer.learning_rate
        * 0.75 ** (given.number - 1),
        epochs=1,
        augmentations=6,
        augmentation=default_augmentation(),
        encoding="float32",
    )
    seed = given.number * 100_000 + user
    task = TaskAssigned(
        run="bench",
        round=given.number,
        user=user_name(user, given.users),
        shard=REF,
        labels=labels,
        spec=REF,
        seed=seed,
    )
    return run_task(TaskInputs(task, spec, images, given.model), kind, engine, lambda _: None, time.monotonic).delta


def accuracy(model: Vector) -> float:
    """On the held-out images."""
    engine, kind = opened()
    held_out = load_dataset(DEFAULT_HELD_OUT_DATA)
    engine.begin(model, None)
    outputs = engine.predict(engine.features(kind.inputs(held_out.images)))
    return kind.scores(outputs, held_out.labels).score.accuracy


def next_model(model: Vector, updates: Sequence[Vector], multiple: float | None) -> Vector:
    """The mean, of equal weights, of updates that are clipped to a multiple of their median norm."""
    norms = [float(np.linalg.norm(one.astype(np.float64))) for one in updates]
    limit = median_limit(norms, multiple) if multiple is not None else None
    total = FixedPointSum(len(model))
    for update, norm in zip(updates, norms, strict=True):
        factor = clip_factor(norm, limit)
        total.add(update if factor is None else update * factor, IMAGES)
    return total.applied_to(model)


@dataclass
class Run:
    """One run of the default task in which the first users are hostile."""

    multiple: float | None
    attack: str = ""
    hostile: int = 0
    accuracies: list[float] = field(default_factory=list)

    def play(self, pool: Executor, rounds: int, users: int) -> None:
        """Plays all rounds; each user's honest update is computed once a round."""
        manifest = load_manifest(DEFAULT_ARTIFACTS)
        model = np.fromfile(artifact_paths(manifest, DEFAULT_ARTIFACTS)["trainable"], "<f4").astype(np.float32)
        random = np.random.default_rng(0)
        for number in range(1, rounds + 1):
            given = Round(number, users, model)
            updates = list(pool.map(functools.partial(trained, given), range(users), chunksize=5))
            mean = np.mean(updates, axis=0)
            for user in range(self.hostile):
                # Spread over the users, who do not all see the same classes.
                place = user * users // max(1, self.hostile)
                updates[place] = ATTACKS[self.attack](updates[place], mean, random)
            model = next_model(model, updates, self.multiple)
            self.accuracies.append(accuracy(model))


def main() -> None:
    """Prints the table and writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--users", type=int, default=100)
    parser.add_argument("--multiple", type=float, nargs="*", default=[CLIP_TO_MEDIAN])
    parser.add_argument("--attacks", nargs="*", default=list(ATTACKS), choices=list(ATTACKS))
    parser.add_argument("--without", action="store_true", help="show the attacks on a mean without clipping, too")
    arguments = parser.parse_args()
    counts = (1, arguments.users // 10)
    runs = [Run(None)]
    for multiple in (None, *arguments.multiple) if arguments.without else arguments.multiple:
        if multiple is not None:
            runs.append(Run(multiple))
        runs += [Run(multiple, attack, count) for attack in arguments.attacks for count in counts]
    table = Table("clipped to", "attack", "hostile", "accuracy", "lost, points", title="hostile clients")
    with ProcessPoolExecutor(2) as pool:
        for one in runs:
            one.play(pool, arguments.rounds, arguments.users)
            lost = 100 * (runs[0].accuracies[-1] - one.accuracies[-1])
            clipped = f"{one.multiple:g} x median" if one.multiple is not None else "nothing"
            report(
                f"hostile_{one.attack or 'none'}_{one.hostile}_{'plain' if one.multiple is None else one.multiple}",
                ours=one.accuracies[-1],
                reference=runs[0].accuracies[-1],
                unit="accuracy",
                goal="at most 1 point lost to one hostile client, 3 to a tenth, .2 to none",
                lost_points=lost,
                rounds=arguments.rounds,
                users=arguments.users,
            )
            table.add_row(
                clipped,
                one.attack or "none",
                str(one.hostile),
                f"{one.accuracies[-1]:.2%}",
                f"{lost:+.2f}",
            )
    Console().print(table)


if __name__ == "__main__":
    main()
