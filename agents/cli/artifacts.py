"""``fedbus artifacts``: builds training artifacts from a Vision Transformer and shows what a folder holds."""

from __future__ import annotations

import shlex
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from artifacts.errors import ExportError
from artifacts.manifest import ArtifactManifest, load_manifest
from data.class_names import as_given, read_class_names

app = typer.Typer(help="Training artifacts: from a Vision Transformer to what clients train.", no_args_is_help=True)
console = Console(highlight=False)


class OptimizerKind(StrEnum):
    """The optimizers that both clients run."""

    SGD = "sgd"
    ADAMW = "adamw"


@app.callback()
def _artifacts() -> None:
    """Training artifacts: from a Vision Transformer to what clients train."""


@app.command()
def build(
    model: Annotated[str, typer.Option("--model", help="Hugging Face hub name, or folder of save_pretrained.")],
    train: Annotated[str, typer.Option("--train", help="head, head-weight, last-K, lora:R or full.")],
    directory: Annotated[Path, typer.Option("--out", "-o", help="Folder for the artifacts.")],
    labels: Annotated[
        Path | None, typer.Option("--labels", help="File of class names: a fresh head for them.", exists=True)
    ] = None,
    optimizer: Annotated[OptimizerKind, typer.Option(help="How a step changes the parameters.")] = OptimizerKind.SGD,
    learning_rate: Annotated[float, typer.Option(help="Default rate; a run may set another for each round.")] = 0.03,
    weight_decay: Annotated[float, typer.Option(min=0, help="Decoupled: p shrinks by rate * decay a step.")] = 0.0,
    clip_norm: Annotated[float | None, typer.Option(help="Largest L2 norm of the whole gradient.")] = None,
    label_smoothing: Annotated[float, typer.Option(min=0, help="Share of the target spread over all classes.")] = 0.0,
    licence: Annotated[str | None, typer.Option(help="Licence of the base model, if its card does not say.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Draws LoRA's and a fresh head's first weights.")] = 0,
) -> None:
    """Build a folder of training artifacts and prove it against torch."""
    try:
        from artifacts.base_model import load_base
        from artifacts.build import BuildOptions, build_artifacts
    except ModuleNotFoundError as error:
        raise ExportError(
            f"building artifacts needs the package {error.name}", hint="pip install 'fedbus[export]'"
        ) from error
    classes = None if labels is None else read_class_names(labels)
    base = load_base(model, licence=licence, classes=classes, seed=seed)
    options = BuildOptions(
        mode=train,
        optimizer=optimizer.value,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        clip_norm=clip_norm,
        label_smoothing=label_smoothing,
        seed=seed,
    )
    command = f"fedbus {shlex.join(sys.argv[1:])}"
    _print(build_artifacts(base, options, directory, command=command), directory)


@app.command()
def show(directory: Annotated[Path, typer.Argument(help="Folder of artifacts.")]) -> None:
    """Check the digests of a folder of artifacts and say what is in it."""
    _print(load_manifest(directory), directory)


def _print(manifest: ArtifactManifest, directory: Path) -> None:
    model, optimizer = manifest.model, manifest.optimizer
    table = Table(box=None, show_header=False, title=f"{manifest.name} in {directory}", title_justify="left")
    rows = {
        "model": f"{model.architecture}, {model.image_size} pixels, {model.channels} channels, {model.licence}",
        "classes": f"{len(model.classes)}: {', '.join(model.classes[:5])}{', …' if len(model.classes) > 5 else ''}",
        "trains": f"{manifest.mode}: {manifest.trainable_count:,} of {model.parameters_total:,} parameters",
        "update": f"{manifest.trainable_count * 4:,} bytes",
        "optimizer": f"{optimizer.kind}, rate {optimizer.learning_rate}, decay {optimizer.weight_decay}, "
        f"clipping {optimizer.clip_norm or 'off'}, label smoothing {manifest.label_smoothing}",
        "beside torch": f"gradients within {manifest.build.max_gradient_error:.1e}, "
        f"logits within {manifest.build.max_logit_error:.1e}",
    }
    if shared := [name for name, given in zip(model.classes, as_given(model.classes), strict=True) if name != given]:
        rows["told apart"] = f"{', '.join(shared[:6])}{', …' if len(shared) > 6 else ''}: classes that share a name"
    for name, value in rows.items():
        table.add_row(name, value)
    for role, file in manifest.files.items():
        table.add_row(role, f"{file.size:,} bytes, {file.sha256[:16]}…")
    console.print(table, soft_wrap=True)
