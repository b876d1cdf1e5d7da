"""Makes the shipped default artifacts: trains the small base model, builds from it, and states its accuracy.

Run as `python -m artifacts.default_task`; with `--keep-base` it builds from the base model that is already there.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import numpy as np
from transformers.utils.logging import disable_progress_bar

from artifacts.base_model import BaseModel, load_base
from artifacts.base_training import MEAN, STD, BaseTraining, train_base
from artifacts.build import BuildOptions, build_artifacts
from artifacts.manifest import artifact_paths, load_manifest
from artifacts.ort_training import NativeTrainer
from artifacts.pixels import pixel_table, to_pixel_values
from data.fashion_mnist_source import DEFAULT_SOURCE, load_split

DEFAULT_DIRECTORY = Path(__file__).parent / "default"
OPTIONS = BuildOptions(mode="lora:8", optimizer="sgd", learning_rate=0.03, label_smoothing=0.1)
# Choices are made on A; B is for the report alone.
HELD_OUT = {"A": slice(0, 2_000), "B": slice(2_000, 4_000)}
COMMAND = "python -m artifacts.default_task"
_LICENCE = "MIT"

log = logging.getLogger(__name__)


def write_base(directory: Path, source: Path) -> None:
    """Train the base model and write it as Hugging Face does, with the processor settings beside it."""
    model = train_base(BaseTraining(), source=source)
    disable_progress_bar()
    model.save_pretrained(directory)
    # safetensors writes files that only their owner can read.
    (directory / "model.safetensors").chmod(0o644)
    processor = (
        '{\n "image_processor_type": "ViTImageProcessor",\n "do_resize": true,\n "size": {"height": 28, "width": 28},\n'
        f' "do_rescale": true,\n "rescale_factor": {1 / 255},\n "do_normalize": true,\n'
        f' "image_mean": {list(MEAN)},\n "image_std": {list(STD)}\n}}\n'
    )
    (directory / "preprocessor_config.json").write_text(processor, encoding="utf-8")


def accuracies(directory: Path, source: Path) -> dict[str, float]:
    """Return the share of right predictions on A and B, computed by the built eval model."""
    manifest = load_manifest(directory)
    trainer = NativeTrainer(manifest, artifact_paths(manifest, directory))
    table = pixel_table(manifest.model.mean, manifest.model.std)
    split = load_split("test", source)
    shares = {}
    for name, part in HELD_OUT.items():
        logits = trainer.predict(to_pixel_values(split.images[part], table))
        shares[name] = float(np.mean(logits.argmax(axis=1) == split.labels[part]))
    return shares


def main() -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=Path, default=DEFAULT_SOURCE, help="folder of the Fashion-MNIST IDX files")
    parser.add_argument("--directory", type=Path, default=DEFAULT_DIRECTORY, help="where the artifacts go")
    parser.add_argument("--keep-base", action="store_true", help="build from the base model that is already there")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    folder = arguments.directory / "base"
    if not arguments.keep_base:
        write_base(folder, arguments.source)
    loaded = load_base(str(folder), licence=_LICENCE)
    base = BaseModel(loaded.model, "fashion-vit", loaded.mean, loaded.std, _LICENCE, {**loaded.facts, "source": "base"})
    manifest = build_artifacts(base, OPTIONS, arguments.directory, command=COMMAND)
    log.info(
        "%d trainable parameters, gradients within %.1e of torch",
        manifest.trainable_count,
        manifest.build.max_gradient_error,
    )
    for name, share in accuracies(arguments.directory, arguments.source).items():
        log.info("accuracy on %s: %.4f", name, share)


if __name__ == "__main__":
    main()
