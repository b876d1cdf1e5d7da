"""A ViT-base task in Chromium, with the frozen part run once per image and with it run every time.

The same run twice through ``fedbus demo``, on artifacts of the true configuration with random weights (built once, in
``benchmarks/out``), the second time without the split in their manifest. Every image is a mismatch, over 3 epochs.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

from artifacts.manifest import MANIFEST_NAME, load_manifest
from benchmarks.bench_split import vit_base_artifacts
from benchmarks.common import report
from benchmarks.runs import demo_report
from data.dataset import DatasetManifest, ImageEntry, ImageFormat, write_dataset

EPOCHS = 3


def task_seconds(artifacts: Path, data: Path, images: int, threads: int) -> float:
    """Seconds of prediction and training of the only user's task."""
    folders = ("--artifacts", str(artifacts), "--data", str(data), "--held-out", str(data))
    options = ("--images", str(images), "--epochs", str(EPOCHS), "--threads", str(threads), "--learning-rate", "1e-6")
    found = demo_report("browser:1", rounds=1, users=1, extra=(*folders, *options))
    return float(found["time"]["predict"] + found["time"]["train"])


def measure(mode: str, images: int, threads: int) -> None:
    """Times both ways on the same images and reports their ratio."""
    artifacts = vit_base_artifacts(mode)
    manifest = load_manifest(artifacts)
    model = manifest.model
    with tempfile.TemporaryDirectory(prefix="fedbus-bench-") as folder:
        whole, data = Path(folder) / "whole", Path(folder) / "data"
        whole.mkdir()
        files = {role: file for role, file in manifest.files.items() if not role.startswith(("prefix", "suffix"))}
        unsplit = manifest.model_copy(update={"prefix": None, "files": files, "engines": {}})
        (whole / MANIFEST_NAME).write_text(unsplit.model_dump_json())
        for _, file in unsplit.files.items():
            (whole / file.path).symlink_to((artifacts / file.path).absolute())
        pixels = np.random.default_rng(0).integers(
            0, 256, (images, model.image_size, model.image_size, model.channels), np.uint8
        )
        facts = DatasetManifest(
            name="noise",
            licence="CC0",
            notice="",
            image=ImageFormat(size=model.image_size, channels=3),
            classes=model.classes,
        )
        entries = [ImageEntry(id=f"i{index}", source="noise", label=model.classes[index]) for index in range(images)]
        write_dataset(data, facts, entries, pixels)
        ours = task_seconds(artifacts, data, images, threads)
        reference = task_seconds(whole, data, images, threads)
    report(
        f"browser_task_split_{mode}",
        ours=ours,
        reference=reference,
        unit="seconds of one task",
        goal="as few as the images that need the frozen part allow: 7 of 22 an image",
        images=images,
        epochs=EPOCHS,
        threads=threads,
    )


def main() -> None:
    """Prints a table for each mode and writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--modes", nargs="+", default=["head", "last-1"])
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    for mode in arguments.modes:
        measure(mode, arguments.images, arguments.threads)


if __name__ == "__main__":
    main()
