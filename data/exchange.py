"""Reads and writes the two JSON files of the earlier system: image id to label, and image id to data URL."""

from __future__ import annotations

import base64
import contextlib
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from PIL import Image

from bus.process.files import write_atomically
from data.dataset import Dataset
from data.errors import ExchangeError, PictureError
from data.files import printable, some_of
from data.prepare import Source

LABELS_NAME = "train.json"
IMAGES_NAME = "train_base64images.json"


def export_dataset(dataset: Dataset, directory: Path) -> tuple[Path, Path]:
    """Write a dataset's labels and images (as PNG, without loss) into the two files; return their paths.

    Images without a label stand in the second file only.
    """
    directory.mkdir(parents=True, exist_ok=True)
    entries = dataset.manifest.images
    labels = {entry.id: entry.label for entry in entries if entry.label is not None}
    urls = {entry.id: _data_url(image) for entry, image in zip(entries, dataset.images, strict=True)}
    paths = directory / LABELS_NAME, directory / IMAGES_NAME
    for path, content in zip(paths, (labels, urls), strict=True):
        write_atomically(path, (json.dumps(content, ensure_ascii=False, indent=0) + "\n").encode())
    return paths


def import_sources(labels: Path | None, images: Path) -> list[Source]:
    """Return the images of the two files as sources for `prepare`, in the order of the images' file.

    An image whose data URL is broken is skipped there, with its reason. Raises ExchangeError when a file cannot be
    read, is no JSON object of texts, or labels an image that the other lacks.
    """
    urls = _texts(images)
    named = _texts(labels) if labels is not None else {}
    strangers = sorted(named.keys() - urls.keys())
    if strangers:
        raise ExchangeError(
            f"{labels} labels {len(strangers)} images that {images} lacks, such as {strangers[0]!r}",
            hint="export both files from the same data set",
        )
    return [Source(name, named.get(name), _opener(url)) for name, url in urls.items()]


def _data_url(image: Any) -> str:
    stream = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(stream, "PNG")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


def _texts(path: Path) -> dict[str, str]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise ExchangeError(f"cannot read {path}: {error}") from error
    if not isinstance(content, dict):
        raise ExchangeError(f"{path} is not a JSON object from image id to text")
    other = [name for name, value in content.items() if not isinstance(value, str)]
    if other:
        raise ExchangeError(f"{path} has no text for {len(other)} of its images: {some_of(other)}")
    return {printable(name): printable(value) for name, value in content.items()}


def _opener(url: str) -> Callable[[], contextlib.AbstractContextManager[Path | IO[bytes]]]:
    @contextlib.contextmanager
    def open_url() -> Iterator[Path | IO[bytes]]:
        # Some writers leave out the header and give the base64 text alone.
        header, comma, body = url.partition(",") if url.startswith("data:") else ("base64", ",", url)
        if not comma or not header.endswith("base64"):
            raise PictureError("not a base64 data URL")
        try:
            content = base64.b64decode(body, validate=True)
        except ValueError as error:
            raise PictureError(f"broken base64: {error}") from error
        yield io.BytesIO(content)

    return open_url
