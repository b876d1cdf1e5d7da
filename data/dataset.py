"""The dataset folder: a manifest beside parts of uint8 images, written so that a crash leaves the old or the new.

`manifest.json` lists every image (`id`, `source`, `label`) in the order of the parts `images-00000.safetensors`, …,
each of which holds one uint8 tensor `images` [n, height, width, channels] of at most 64 MiB.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError, model_validator
from safetensors import safe_open
from safetensors.numpy import save

from bus.process.files import sha256_of, write_atomically
from bus.words.problems import what_is_wrong
from bus.words.values import Frozen, Sha256
from data.errors import DatasetError, DatasetIntegrityError
from data.shards import BROKEN_TENSORS

MANIFEST_NAME = "manifest.json"
PART_BYTES = 64 * 1024 * 1024
MAX_ID, MAX_SOURCE = 500, 4_000
"""Characters."""
UNLABELLED = -1
_TENSOR = "images"


class ImageFormat(Frozen):
    """All images of a dataset are square, of `size` pixels a side and 1 (grey) or 3 (RGB) channels."""

    size: Annotated[int, Field(ge=1, le=1024)]
    channels: Literal[1, 3]

    @property
    def bytes(self) -> int:
        """Bytes of one image."""
        return self.size * self.size * self.channels


class ImageEntry(Frozen):
    """One image: a name that is unique in the dataset, where it came from, and its class if it is known."""

    id: Annotated[str, Field(min_length=1, max_length=MAX_ID)]
    source: Annotated[str, Field(max_length=MAX_SOURCE)]
    label: str | None = None


class SkippedEntry(Frozen):
    """A source that gave no image, and why."""

    source: Annotated[str, Field(max_length=MAX_SOURCE)]
    reason: str


class Part(Frozen):
    """A file of images: those from index `first` on, `count` of them."""

    path: Annotated[str, Field(pattern=r"^images-[0-9]{5}\.safetensors$")]
    first: Annotated[int, Field(ge=0)]
    count: Annotated[int, Field(ge=1)]
    sha256: Sha256


class DatasetManifest(Frozen):
    """What a dataset folder holds; `classes` may be empty when no image has a label."""

    version: Literal[1] = 1
    name: Annotated[str, Field(max_length=200)]
    licence: str
    notice: str
    image: ImageFormat
    classes: tuple[str, ...]
    images: tuple[ImageEntry, ...] = ()
    skipped: tuple[SkippedEntry, ...] = ()
    parts: tuple[Part, ...] = ()

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        if len({entry.id for entry in self.images}) != len(self.images):
            raise ValueError("an image id stands twice")
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("a class stands twice")
        unknown = {entry.label for entry in self.images if entry.label is not None} - set(self.classes)
        if unknown:
            raise ValueError(f"labels {sorted(unknown)[:3]} are no classes")
        first = 0
        for part in self.parts:
            if part.first != first:
                raise ValueError(f"{part.path} begins at {part.first}, expected {first}")
            first += part.count
        if first != len(self.images):
            raise ValueError(f"the parts hold {first} images, the manifest lists {len(self.images)}")
        return self


@dataclass(frozen=True)
class Dataset:
    """A dataset folder that was opened."""

    directory: Path
    manifest: DatasetManifest

    def __len__(self) -> int:
        return len(self.manifest.images)

    @property
    def labels(self) -> NDArray[np.int64]:
        """Class indices int64 [n]; UNLABELLED where the class is not known."""
        indices = {name: index for index, name in enumerate(self.manifest.classes)}
        values = [UNLABELLED if image.label is None else indices[image.label] for image in self.manifest.images]
        return np.array(values, dtype=np.int64)

    def without_label(self, indices: Iterable[int] | None = None) -> list[str]:
        """Return where those of the images that have no label came from, of all images or of some."""
        entries = self.manifest.images
        chosen = entries if indices is None else (entries[index] for index in indices)
        return [entry.source for entry in chosen if entry.label is None]

    @cached_property
    def images(self) -> NDArray[np.uint8]:
        """All images uint8 [n, size, size, channels], read from the parts when first asked for.

        Raises DatasetError when a part cannot be read.
        """
        image = self.manifest.image
        images = np.empty((len(self), image.size, image.size, image.channels), np.uint8)
        for part in self.manifest.parts:
            images[part.first : part.first + part.count] = self._read(part)
        return images

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the labels."""
        return self.manifest.classes

    def _read(self, part: Part) -> NDArray[np.uint8]:
        path, image = self.directory / part.path, self.manifest.image
        try:
            with safe_open(path, framework="np") as stream:
                images: NDArray[np.uint8] = stream.get_tensor(_TENSOR)
        except (OSError, *BROKEN_TENSORS) as error:
            raise DatasetError(f"cannot read {path}: {error}", hint="build the dataset again") from error
        if images.dtype != np.uint8 or images.shape != (part.count, image.size, image.size, image.channels):
            raise DatasetError(f"{path} holds {images.dtype} {images.shape}, the manifest says otherwise")
        return images


def load_dataset(directory: Path, *, verify: bool = True) -> Dataset:
    """Return the dataset of a folder, after comparing the SHA-256 of each part if `verify`.

    Raises DatasetError when there is none or it is malformed, and DatasetIntegrityError when a part does not match.
    """
    dataset = Dataset(directory, read_manifest(directory / MANIFEST_NAME))
    if verify:
        for part in dataset.manifest.parts:
            _verify(directory / part.path, part.sha256)
    return dataset


def read_manifest(path: Path) -> DatasetManifest:
    """Return the manifest that a file holds, or raise DatasetError."""
    try:
        return DatasetManifest.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise DatasetError(
            f"{path} does not exist", hint="prepare a dataset with `fedbus data prepare FOLDER --out DIR`"
        ) from error
    except ValidationError as error:
        raise DatasetError(f"{path} is not a dataset manifest: {what_is_wrong(error)}") from error


def write_dataset(
    directory: Path, facts: DatasetManifest, entries: Iterable[ImageEntry], images: NDArray[np.uint8]
) -> DatasetManifest:
    """Write a dataset folder of uint8 images [n, size, size, channels]; `facts` gives all but images and parts.

    An existing dataset is replaced; the manifest arrives last. Raises DatasetError when the images do not fit.
    """
    image = facts.image
    entries = tuple(entries)
    if images.dtype != np.uint8 or images.shape != (len(entries), image.size, image.size, image.channels):
        raise DatasetError(f"images are {images.dtype} {images.shape}, which does not fit {len(entries)} entries")
    directory.mkdir(parents=True, exist_ok=True)
    (directory / MANIFEST_NAME).unlink(missing_ok=True)
    step = max(1, PART_BYTES // image.bytes)
    parts = [
        write_part(directory, number, first, images[first : first + step])
        for number, first in enumerate(range(0, len(images), step))
    ]
    manifest = facts.model_copy(update={"images": entries, "parts": tuple(parts)})
    manifest = DatasetManifest.model_validate(manifest.model_dump())
    write_manifest(directory / MANIFEST_NAME, manifest)
    return manifest


def write_part(directory: Path, number: int, first: int, images: NDArray[np.uint8]) -> Part:
    """Write part `number`, uint8 images [n, height, width, channels] from index `first` on; return its entry."""
    content = save({_TENSOR: np.ascontiguousarray(images)})
    name = f"images-{number:05d}.safetensors"
    write_atomically(directory / name, content)
    return Part(path=name, first=first, count=len(images), sha256=hashlib.sha256(content).hexdigest())


def write_manifest(path: Path, manifest: DatasetManifest) -> None:
    """Write a manifest so that a reader or a crash sees the old one or the new one."""
    write_atomically(path, manifest.model_dump_json(indent=1).encode() + b"\n")


def _verify(path: Path, sha256: str) -> None:
    try:
        found = sha256_of(path)
    except OSError as error:
        raise DatasetIntegrityError(f"cannot read {path}: {error}", hint="build the dataset again") from error
    if found != sha256:
        raise DatasetIntegrityError(
            f"{path} has SHA-256 {found}, its manifest says {sha256}", hint="build the dataset again"
        )
