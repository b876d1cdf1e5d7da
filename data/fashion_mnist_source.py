"""Fashion-MNIST as the Debian package dataset-fashion-mnist installs it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.errors import SourceMissingError
from data.idx import read_idx

DEFAULT_SOURCE = Path("/usr/share/datasets/fashion-mnist")
CLASSES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
_FILES = {"train": "train", "test": "t10k"}


@dataclass(frozen=True)
class FashionMnist:
    """One split: images uint8 [n, 28, 28, 1] and labels int64 [n] of the ten CLASSES."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


def load_split(split: str, source: Path = DEFAULT_SOURCE) -> FashionMnist:
    """Return the "train" (60,000 images) or "test" (10,000) split, in its published order.

    Raises SourceMissingError when a file is absent and IdxError when one is malformed.
    """
    found = {kind: _find(source, f"{_FILES[split]}-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1")}
    images = read_idx(found["images-idx3"], rank=3)[..., None]
    labels = read_idx(found["labels-idx1"], rank=1).astype(np.int64)
    return FashionMnist(images, labels)


def _find(source: Path, name: str) -> Path:
    for candidate in (source / f"{name}.gz", source / name):
        if candidate.is_file():
            return candidate
    raise SourceMissingError(
        f"{name}.gz is not in {source}",
        hint="install the Debian package dataset-fashion-mnist (apt install dataset-fashion-mnist) "
        "or pass the folder that holds the four IDX files with --source",
    )
