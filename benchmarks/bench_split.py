"""One user's task on a ViT-base-sized model, with the frozen part run once per image and with it run every time.

`python -m benchmarks.bench_split` builds artifacts of the true configuration with random weights (a minute, once, in
``benchmarks/out``) and times predicting 20 images and training on 10 of them, 7 images each, for 3 epochs.
"""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from artifacts.manifest import MANIFEST_NAME, ArtifactManifest, artifact_paths, load_manifest
from artifacts.ort_training import NativeTrainer
from benchmarks.common import OUT, report

IMAGES, MISMATCHES, BATCH, EPOCHS = 20, 10, 7, 3


def vit_base_artifacts(mode: str) -> Path:
    """Return a folder of artifacts of a ViT-base with random weights, built when it is not there yet."""
    directory = OUT / f"vit-base-{mode}"
    if not (directory / MANIFEST_NAME).exists():
        import torch
        from transformers import ViTConfig, ViTForImageClassification

        from artifacts.base_model import BaseModel
        from artifacts.build import BuildOptions, build_artifacts

        torch.manual_seed(0)
        half = (0.5, 0.5, 0.5)
        base = BaseModel(ViTForImageClassification(ViTConfig(num_labels=1_000)), "vit-base-random", half, half)
        shutil.rmtree(directory, ignore_errors=True)
        build_artifacts(base, BuildOptions(mode), directory, command="python -m benchmarks.bench_split")
    return directory


def run_task(trainer: NativeTrainer, images: NDArray[np.float32], batches: NDArray[np.float32]) -> float:
    """Return the seconds that a task takes; batches [mismatches, 7, ...] begin with the image itself."""
    started = time.perf_counter()
    known = trainer.features(images)
    trainer.predict(known)
    own = [np.concatenate([known[index : index + 1], trainer.features(b[1:])]) for index, b in enumerate(batches)]
    for _ in range(EPOCHS):
        for label, batch in enumerate(own):
            trainer.train_step(batch, np.full(BATCH, label))
    return time.perf_counter() - started


def measure(mode: str, threads: int) -> None:
    """Time both ways on the same images and report their ratio."""
    directory = vit_base_artifacts(mode)
    manifest: ArtifactManifest = load_manifest(directory)
    paths = artifact_paths(manifest, directory)
    whole = {role: path for role, path in paths.items() if role != "prefix_model"}
    generator = np.random.default_rng(0)
    shape = (manifest.model.channels, manifest.model.image_size, manifest.model.image_size)
    images = generator.standard_normal((IMAGES, *shape), dtype=np.float32)
    batches = generator.standard_normal((MISMATCHES, BATCH, *shape), dtype=np.float32)
    batches[:, 0] = images[:MISMATCHES]
    seconds, parameters = [], []
    for files in (paths, whole):
        trainer = NativeTrainer(manifest, files, threads=threads)
        seconds.append(run_task(trainer, images, batches))
        parameters.append(trainer.parameters())
        del trainer
    report(
        f"task_split_{mode}",
        ours=seconds[0],
        reference=seconds[1],
        unit="s per task (split / whole)",
        goal="at most 0.33 at head" if mode == "head" else "",
        speedup=seconds[1] / seconds[0],
        threads=threads,
        largest_difference=float(np.abs(parameters[0] - parameters[1]).max()),
    )


def main() -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modes", nargs="*", default=["head", "last-1"])
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    for mode in given.modes:
        measure(mode, given.threads)


if __name__ == "__main__":
    main()
