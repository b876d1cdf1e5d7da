"""Starts a run: gives users their images, puts everything into the object store and says ``run.started``."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from agents.core.learning.kinds import check_kind
from agents.core.strategies.registry import strategy_named
from agents.runtime.tasks import together
from agents.words.events import RunStarted
from agents.words.run_config import RunConfig, RunDataset, UserShard
from artifacts.manifest import TRAINABLE, ArtifactManifest, load_manifest
from bus.client import Bus
from bus.errors import FedbusError
from bus.words.values import Ref
from data.dataset import Dataset, load_dataset
from data.partition import partition
from data.shards import MEDIA_TYPE, encode_shard

T = TypeVar("T")
R = TypeVar("R")
PACKAGE_ROOT = Path(__file__).resolve().parents[2]
DEFAULT_ARTIFACTS = PACKAGE_ROOT / "artifacts" / "default"
DEFAULT_USERS_DATA = PACKAGE_ROOT / "data" / "fashion_mnist" / "users"
DEFAULT_HELD_OUT_DATA = PACKAGE_ROOT / "data" / "fashion_mnist" / "held_out"
PARALLEL_PUTS = 16


class DataMismatchError(FedbusError):
    """A dataset does not fit the model that shall train on it."""

    code = "data_mismatch"


@dataclass(frozen=True)
class RunSources:
    """Where a run's artifacts and images come from, and who gets which images (see ``data.partition``)."""

    artifacts: Path = DEFAULT_ARTIFACTS
    users: Path = DEFAULT_USERS_DATA
    held_out: Path = DEFAULT_HELD_OUT_DATA
    partition: str = "in-order"


async def start_run(bus: Bus, run: str, config: RunConfig, sources: RunSources) -> RunStarted:
    """Puts artifacts, shards and dataset into the store and publishes the run.

    Raises:
        FedbusError: the artifacts or the data are missing or damaged, do not fit each other, or have too few images;
            the strategy or one of its settings is unknown; a run of this name exists already and says something else.
    """
    check_kind(config.kind)
    strategy_named(config.strategy, config.strategy_settings)
    manifest = load_manifest(sources.artifacts)
    if manifest.kind != config.kind:
        raise DataMismatchError(f"{sources.artifacts} is for the kind of task {manifest.kind}, not {config.kind}")
    users, held_out = load_dataset(sources.users), load_dataset(sources.held_out)
    check_fit(manifest, users, sources.users)
    check_fit(manifest, held_out, sources.held_out)
    owned = partition(users, config.users, config.images_per_user, sources.partition, seed=config.seed)
    dataset_ref = await _put_dataset(bus, users, owned, held_out)
    for _, file in manifest.files.items():
        await bus.objects.put_file(sources.artifacts / file.path, file.media_type)
    started = RunStarted(
        run=run,
        config=config,
        config_digest=hashlib.sha256(config.model_dump_json().encode()).hexdigest(),
        dataset=dataset_ref,
        artifacts=await bus.objects.put(manifest.model_dump_json().encode(), media_type="application/json"),
        base_model=manifest.files[TRAINABLE].ref,
        users=config.users,
    )
    await bus.publish(started)
    return started


def check_fit(manifest: ArtifactManifest, dataset: Dataset, folder: Path) -> None:
    """Sees to it that the images have the model's size and the labels its classes.

    Raises:
        DataMismatchError: they do not.
    """
    model = manifest.model
    wanted = (model.image_size, model.image_size, model.channels)
    if dataset.images.shape[1:] != wanted:
        raise DataMismatchError(
            f"{folder} has images of {dataset.images.shape[1:]} (height, width, channels); the model takes {wanted}",
            hint="prepare the pictures for this model: fedbus data prepare FOLDER --artifacts DIR",
        )
    if tuple(dataset.classes) != tuple(model.classes):
        raise DataMismatchError(
            f"{folder} and the model have different classes",
            hint="build the artifacts with --labels FILE, or prepare the data for this model",
        )


async def _put_dataset(bus: Bus, users: Dataset, owned: Sequence[Sequence[int]], held_out: Dataset) -> Ref:
    names = [user_name(index, len(owned)) for index in range(len(owned))]

    async def put(indices: Sequence[int]) -> Ref:
        return await bus.objects.put(encode_shard(users.images[np.asarray(indices)]), media_type=MEDIA_TYPE)

    shards = await _in_parallel(put, owned)
    truth = {name: users.labels[np.asarray(indices)].tolist() for name, indices in zip(names, owned, strict=True)}
    dataset = RunDataset(
        classes=tuple(users.classes),
        users=tuple(UserShard(user=name, shard=shard) for name, shard in zip(names, shards, strict=True)),
        held_out=await bus.objects.put(encode_shard(held_out.images, held_out.labels), media_type=MEDIA_TYPE),
        truth=await bus.objects.put(json.dumps(truth).encode(), media_type="application/json"),
    )
    return await bus.objects.put(dataset.model_dump_json().encode(), media_type="application/json")


def user_name(index: int, users: int) -> str:
    """The name of the simulated user ``index``, padded so that names sort by number."""
    return f"user-{index:0{max(3, len(str(users - 1)))}}"


async def _in_parallel(work: Callable[[T], Awaitable[R]], items: Sequence[T]) -> list[R]:
    """Results of ``work`` in the order of ``items``, ``PARALLEL_PUTS`` at a time."""
    slots = asyncio.Semaphore(PARALLEL_PUTS)

    async def one(item: T) -> R:
        async with slots:
            return await work(item)

    return await together(map(one, items))
