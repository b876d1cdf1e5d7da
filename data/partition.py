"""Partitions: which images each user has, as lists of indices; the same arguments always give the same lists."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray

from data.dataset import Dataset
from data.errors import PartitionError
from data.files import some_of

Partition = list[list[int]]
_LABEL_ALL = "use in-order or iid, or label the images first"
SCHEMES = "in-order, iid, dirichlet:ALPHA, pathological:CLASSES or by-folder"


def partition(dataset: Dataset, users: int, per_user: int, scheme: str, *, seed: int) -> Partition:
    """Return the images of each user under a scheme in words, such as "iid", "dirichlet:0.3" or "pathological:2".

    "by-folder" gives each folder's owner the first `per_user` of its images and needs `users` folders.

    Raises PartitionError when the scheme is unknown or the dataset cannot give it.
    """
    name, _, argument = scheme.partition(":")
    count, labels = len(dataset), dataset.labels
    if name in ("dirichlet", "pathological") and (missing := dataset.without_label()):
        raise PartitionError(
            f"a partition by class needs a label for every image; without one: {some_of(missing)}",
            hint=_LABEL_ALL,
        )
    try:
        match name, argument:
            case "in-order", "":
                return in_order(count, users, per_user)
            case "iid", "":
                return iid(count, users, per_user, seed=seed)
            case "dirichlet", _:
                return dirichlet(labels, users, per_user, alpha=float(argument), seed=seed)
            case "pathological", _:
                return pathological(labels, users, per_user, classes=int(argument), seed=seed)
            case "by-folder", "":
                return _bounded(by_folder([image.source for image in dataset.manifest.images]), users, per_user)
    except ValueError as error:
        raise PartitionError(f"{scheme!r} has no usable number: {error}", hint=f"use {SCHEMES}") from error
    raise PartitionError(f"there is no partition {scheme!r}", hint=f"use {SCHEMES}")


def in_order(count: int, users: int, per_user: int) -> Partition:
    """Give each user the next `per_user` of `count` images; for data that is shuffled already."""
    _check_enough(count, users, per_user)
    return [list(range(user * per_user, (user + 1) * per_user)) for user in range(users)]


def iid(count: int, users: int, per_user: int, *, seed: int) -> Partition:
    """Give each user `per_user` images drawn from all `count`, each image to at most one user."""
    _check_enough(count, users, per_user)
    drawn = np.random.default_rng(seed).permutation(count)[: users * per_user]
    return [[int(index) for index in row] for row in drawn.reshape(users, per_user)]


def dirichlet(labels: NDArray[np.int64], users: int, per_user: int, *, alpha: float, seed: int) -> Partition:
    """Give each user `per_user` images whose class mix is drawn from Dirichlet(alpha) around the overall mix.

    Small alphas give each user few classes (Hsu et al. 2019, arXiv 1909.06335). When a class runs out, the user's
    remaining draws fall on its other classes, and on whatever is left when all of those are gone.
    """
    if not alpha > 0:
        raise PartitionError(f"alpha is above 0, not {alpha}")
    _check_enough(len(labels), users, per_user)
    generator = np.random.default_rng(seed)
    pools = _shuffled_pools(labels, generator)
    prior = np.array([len(pool) for pool in pools], dtype=np.float64) / len(labels)
    partition: Partition = []
    for _ in range(users):
        mix = generator.dirichlet(np.maximum(alpha * prior * len(pools), 1e-6))
        chosen = []
        for _ in range(per_user):
            left = np.array([len(pool) for pool in pools], dtype=np.float64)
            weights = np.where(left > 0, mix, 0.0)
            if weights.sum() <= 0:
                weights = left
            chosen.append(pools[generator.choice(len(pools), p=weights / weights.sum())].pop())
        partition.append(chosen)
    return partition


def pathological(labels: NDArray[np.int64], users: int, per_user: int, *, classes: int, seed: int) -> Partition:
    """Give each user images of `classes` classes, in equal shares up to one image.

    After the pathological split of McMahan et al. 2017 (arXiv 1602.05629). Each user takes the classes of which most
    images are left. Where the last users find too few in any such choice, they fill up from further classes; this
    does not happen when the classes are of equal size and a share divides it.
    """
    if not 1 <= classes <= per_user:
        raise PartitionError(f"{per_user} images cannot show {classes} classes")
    _check_enough(len(labels), users, per_user)
    generator = np.random.default_rng(seed)
    pools = _shuffled_pools(labels, generator)
    if classes > len(pools):
        raise PartitionError(f"the dataset shows {len(pools)} classes, {classes} were asked for each user")
    partition: Partition = []
    for _ in range(users):
        ties = generator.permutation(len(pools))
        fullest = sorted(range(len(pools)), key=lambda label: (-len(pools[label]), ties[label]))
        chosen: list[int] = []
        for place, label in enumerate(fullest[:classes]):
            # The first r classes give one image more when the shares are not equal.
            fair = per_user // classes + (place < per_user % classes)
            chosen.extend(pools[label].pop() for _ in range(min(fair, len(pools[label]))))
        chosen.extend(_leftovers(pools, per_user - len(chosen)))
        partition.append(chosen)
    return partition


def by_folder(sources: Sequence[str]) -> Partition:
    """Make each top-level folder among the sources' paths one user, in the order of the folders' names.

    Raises PartitionError when a source lies in no folder.
    """
    owners: dict[str, list[int]] = {}
    for index, source in enumerate(sources):
        parts = PurePosixPath(source).parts
        if len(parts) < 2:
            raise PartitionError(
                f"{source!r} lies in no folder", hint="put each user's images into a folder of its own"
            )
        owners.setdefault(parts[0], []).append(index)
    return [owners[name] for name in sorted(owners)]


def _bounded(owned: Partition, users: int, per_user: int) -> Partition:
    if len(owned) < users or any(len(images) < per_user for images in owned[:users]):
        raise PartitionError(
            f"{users} folders with {per_user} images each are needed; there are {len(owned)}, the smallest with "
            f"{min(map(len, owned), default=0)}",
            hint="ask for fewer users or fewer images a user",
        )
    return [images[:per_user] for images in owned[:users]]


def class_counts(partition: Partition, labels: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """Return int64 [users, classes]: how many images of each class each user has; unlabelled ones do not count."""
    counts = np.zeros((len(partition), classes), dtype=np.int64)
    for user, indices in enumerate(partition):
        known = labels[indices]
        counts[user] = np.bincount(known[known >= 0], minlength=classes)
    return counts


def _shuffled_pools(labels: NDArray[np.int64], generator: np.random.Generator) -> list[list[int]]:
    """Return each class's image indices in random order."""
    if len(labels) == 0 or labels.min() < 0:
        raise PartitionError("a partition by class needs a label for every image", hint=_LABEL_ALL)
    pools = [generator.permutation(np.flatnonzero(labels == label)).tolist() for label in range(int(labels.max()) + 1)]
    return [pool for pool in pools if pool]


def _leftovers(pools: list[list[int]], count: int) -> list[int]:
    """Take `count` images from whichever classes still have some."""
    return [max(pools, key=len).pop() for _ in range(count)]


def _check_enough(count: int, users: int, per_user: int) -> None:
    if users < 1 or per_user < 1:
        raise PartitionError(f"a partition has at least one user with one image, not {users} with {per_user}")
    if users * per_user > count:
        raise PartitionError(
            f"{users} users with {per_user} images each need {users * per_user}, the dataset has {count}",
            hint="ask for fewer users or fewer images a user",
        )
