"""Starts a run: gives users their images, puts everything into the object store and says ``run.started``."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from agents.core.rounds.settings import check_settings
from agents.runtime.shipped import DEFAULT_ARTIFACTS, DEFAULT_HELD_OUT_DATA, DEFAULT_USERS_DATA
from agents.runtime.tasks import together
from agents.words.events import RunStarted
from agents.words.run_config import RunConfig, RunDataset, UserShard
from artifacts.manifest import TRAINABLE, ArtifactManifest, load_manifest
from bus.client import Bus
from bus.errors import FedbusError, ObjectMissingError
from bus.words.values import Ref
from data.dataset import Dataset, load_dataset
from data.files import some_of
from data.partition import partition
from data.shards import MEDIA_TYPE, encode_shard

T = TypeVar("T")
R = TypeVar("R")
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
            the encoding, kind, strategy or one of its settings is unknown; a run of this name exists already and says
            something else.
    """
    check_settings(config)
    return await _publish(bus, run, config, await put_sources(bus, config, sources))


async def start_run_again(bus: Bus, run: str, config: RunConfig, objects: Mapping[str, str]) -> RunStarted:
    """Publishes a run whose ``dataset``, ``artifacts`` and ``base_model`` lie in the store under these names.

    Raises:
        ObjectMissingError: one of them does not.
        DataMismatchError: the dataset has other users than the config says.
        FedbusError: the strategy, one of its settings or the kind of task is unknown; a run of this name exists already
            and says something else.
    """
    check_settings(config)
    refs: dict[str, Ref] = {}
    for role in ("dataset", "artifacts", "base_model"):
        if (ref := await bus.objects.info(objects[role])) is None:
            raise ObjectMissingError(
                f"this bus has no {role.replace('_', ' ')} {objects[role]}",
                hint="name files under [sources] in place of [objects]",
            )
        refs[role] = ref
    dataset = RunDataset.model_validate_json(await bus.objects.get(refs["dataset"]))
    if len(dataset.users) != config.users:
        raise DataMismatchError(
            f"the run's dataset has {len(dataset.users)} users, its settings say {config.users}",
            hint="other users need [sources] in place of [objects]",
        )
    return await _publish(bus, run, config, StoredSources(**refs))


@dataclass(frozen=True)
class StoredSources:
    """A run's data and model in the object store."""

    dataset: Ref
    artifacts: Ref
    base_model: Ref


@dataclass(frozen=True)
class ReadSources:
    """A run's data and model, read and found to fit each other; ``owned`` are the indices of each user's images."""

    manifest: ArtifactManifest
    users: Dataset
    held_out: Dataset
    owned: Sequence[Sequence[int]]


def read_sources(config: RunConfig, sources: RunSources) -> ReadSources:
    """Reads data and model, without a bus; raises as ``start_run``."""
    manifest = load_manifest(sources.artifacts)
    if manifest.kind != config.kind:
        raise DataMismatchError(f"{sources.artifacts} is for the kind of task {manifest.kind}, not {config.kind}")
    users, held_out = load_dataset(sources.users), load_dataset(sources.held_out)
    check_fit(manifest, users, sources.users)
    check_fit(manifest, held_out, sources.held_out)
    owned = partition(users, config.users, config.images_per_user, sources.partition, seed=config.seed)
    check_labelled(held_out, sources.held_out, range(len(held_out)), "the evaluation needs")
    if config.labelling.provider == "truth":
        everybodys = [index for indices in owned for index in indices]
        check_labelled(users, sources.users, everybodys, "the labeller 'truth' needs")
    return ReadSources(manifest, users, held_out, owned)


async def put_sources(bus: Bus, config: RunConfig, sources: RunSources) -> StoredSources:
    """Puts artifacts, shards and dataset into the store; raises as ``start_run``."""
    read = read_sources(config, sources)
    manifest = read.manifest
    dataset_ref = await _put_dataset(bus, read.users, read.owned, read.held_out)
    for _, file in manifest.files.items():
        await bus.objects.put_file(sources.artifacts / file.path, file.media_type)
    return StoredSources(
        dataset=dataset_ref,
        artifacts=await bus.objects.put(manifest.model_dump_json().encode(), media_type="application/json"),
        base_model=manifest.files[TRAINABLE].ref,
    )


async def _publish(bus: Bus, run: str, config: RunConfig, sources: StoredSources) -> RunStarted:
    started = RunStarted(
        run=run,
        config=config,
        config_digest=hashlib.sha256(config.model_dump_json().encode()).hexdigest(),
        dataset=sources.dataset,
        artifacts=sources.artifacts,
        base_model=sources.base_model,
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


def check_labelled(dataset: Dataset, folder: Path, indices: Iterable[int], who: str) -> None:
    """Sees to it that these images have labels.

    Raises:
        DataMismatchError: some have none; it names their pictures.
    """
    if missing := dataset.without_label(indices):
        raise DataMismatchError(
            f"{who} a label for every picture of {folder}; without one: {some_of(missing)}",
            hint="put them into folders named after classes, or take them out, and prepare the folder anew",
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
