"""Makes the shipped dataset folders from the files of Fashion-MNIST: run `python -m data.fashion_mnist`."""

from __future__ import annotations

import argparse
from pathlib import Path

from data.dataset import DatasetManifest, ImageEntry, ImageFormat, write_dataset
from data.fashion_mnist_source import CLASSES, DEFAULT_SOURCE, load_split

DIRECTORY = Path(__file__).parent / "fashion_mnist"
USERS, HELD_OUT = DIRECTORY / "users", DIRECTORY / "held_out"
_NOTICE = "Fashion-MNIST, Copyright (c) 2017 Zalando SE, https://tech.zalando.com; MIT License, see NOTICE"


def build(directory: Path, source: Path = DEFAULT_SOURCE) -> None:
    """Write the users' images (training images 40,000 to 41,999) and the held-out ones (test images 2,000 to 3,999)."""
    _write(directory / "users", "fashion-mnist users", "train", slice(40_000, 42_000), source)
    _write(directory / "held_out", "fashion-mnist held out", "test", slice(2_000, 4_000), source)


def _write(directory: Path, name: str, split: str, part: slice, source: Path) -> None:
    content = load_split(split, source)
    facts = DatasetManifest(
        name=name, licence="MIT", notice=_NOTICE, image=ImageFormat(size=28, channels=1), classes=CLASSES
    )
    entries = [
        ImageEntry(id=f"{split}-{index:05d}", source=f"{split} image {index}", label=CLASSES[content.labels[index]])
        for index in range(part.start, part.stop)
    ]
    write_dataset(directory, facts, entries, content.images[part])


def main() -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=Path, default=DEFAULT_SOURCE, help="folder of the Fashion-MNIST IDX files")
    parser.add_argument("--directory", type=Path, default=DIRECTORY, help="where the two dataset folders go")
    arguments = parser.parse_args()
    build(arguments.directory, arguments.source)


if __name__ == "__main__":
    main()
