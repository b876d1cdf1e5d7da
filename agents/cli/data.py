"""``fedbus data``: prepares pictures, finds duplicates, shares images out, and reads and writes old data sets."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from agents.cli import labels
from agents.runtime.shipped import DEFAULT_ARTIFACTS
from artifacts.model_input import model_input
from bus.process.files import write_atomically
from bus.process.logs import escaped
from data import exchange
from data.class_counts import counts_table, draw_counts
from data.dataset import DatasetManifest, load_dataset
from data.files import printable, some_of
from data.partition import SCHEMES, class_counts, partition
from data.prepare import Source, Target, folder_sources, labelled_as
from data.prepare import prepare as prepare_dataset

app = typer.Typer(help="Images: prepare, clean, share out, exchange.", no_args_is_help=True)
app.add_typer(labels.app, name="labels")
console = Console(highlight=False)

_SHOWN = 10
Out = Annotated[
    Path, typer.Option("--out", "-o", help="Folder for the dataset; of one that is there, what still fits is kept.")
]
Model = Annotated[
    Path | None,
    typer.Option(
        "--artifacts",
        "--model",
        help="Folder of artifacts or of save_pretrained, whose resolution, processor settings and classes apply. "
        "Without it: the default model's, and the labels that occur are the classes.",
    ),
]
Licence = Annotated[str, typer.Option("--licence", help="Under which the pictures may be used.")]


@app.command()
def prepare(
    folder: Annotated[Path, typer.Argument(help="Pictures, in folders named by class or flat.")],
    out: Out,
    model: Model = None,
    licence: Licence = "unknown",
) -> None:
    """Prepare a folder of pictures for a model; what cannot be read is listed and skipped."""
    target = _target(model, folder.absolute().name, licence)
    _prepare(folder_sources(folder, leave_out=out), out, target)


@app.command()
def duplicates(
    folders: Annotated[list[Path], typer.Argument(help="Folders of pictures; of equal ones the earlier is kept.")],
    distance: Annotated[int, typer.Option(min=0, max=32, help="Bits of 64 that near duplicates may differ in.")] = 6,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="JSON file for the groups.")] = None,
    remove: Annotated[
        bool, typer.Option("--remove", help="Move all but one of each group to FOLDER.duplicates.")
    ] = False,
) -> None:
    """Find exact and near duplicates in and between folders of pictures."""
    from data.duplicates import find_duplicates, move_duplicates

    with _progress("comparing", None) as advance:
        report = find_duplicates(folders, distance=distance, progress=advance)
    for group in report.groups:
        _say(f"{group.kind}{', across folders' if group.across else ''}:")
        for place, image in enumerate(group.images):
            note = "kept" if place == 0 else f"{image.distance} bits"
            _say(f"  {Path(image.folder) / image.path}  {image.width}x{image.height}  {note}")
    surplus = sum(len(group.images) - 1 for group in report.groups)
    _say(f"{report.compared} pictures compared, {len(report.groups)} groups, {surplus} could go")
    if report.unreadable:
        _say(f"{len(report.unreadable)} files could not be compared")
    for one in report.unreadable[:_SHOWN]:
        _say(f"  {Path(one.folder) / one.path}: {one.reason}")
    if out is not None:
        # In ASCII, so that names that are not UTF-8 can be written and read again.
        write_atomically(out, (json.dumps(report.model_dump(), indent=1) + "\n").encode())
    if remove:
        moved = move_duplicates(report)
        _say(f"{len(moved)} pictures moved" + (f", the first to {moved[0][1]}" if moved else ""))


@app.command("partition")
def partition_command(
    dataset: Annotated[Path, typer.Argument(help="Folder of a prepared dataset.")],
    users: Annotated[int, typer.Option(min=1, help="Users to share the images out to.")] = 100,
    images: Annotated[int, typer.Option(min=1, help="Images of each user.")] = 20,
    scheme: Annotated[str, typer.Option(help=SCHEMES)] = "iid",
    seed: Annotated[int, typer.Option(min=0, help="Everything random follows from it.")] = 0,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="JSON file: user to image ids.")] = None,
    picture: Annotated[Path | None, typer.Option("--picture", help="PNG file that shows the class counts.")] = None,
) -> None:
    """Show which images each user gets under a scheme, as class counts per user."""
    loaded = load_dataset(dataset)
    owned = partition(loaded, users, images, scheme, seed=seed)
    width = max(3, len(str(users - 1)))
    names = [f"user-{index:0{width}d}" for index in range(users)]
    counts = class_counts(owned, loaded.labels, len(loaded.classes))
    console.print(counts_table(counts, names, loaded.classes))
    if out is not None:
        ids = [entry.id for entry in loaded.manifest.images]
        shares = {name: [ids[index] for index in indices] for name, indices in zip(names, owned, strict=True)}
        content = {"scheme": scheme, "seed": seed, "users": shares}
        write_atomically(out, (json.dumps(content, ensure_ascii=False, indent=1) + "\n").encode())
    if picture is not None:
        draw_counts(counts, names, loaded.classes, picture, title=f"{loaded.manifest.name}, {scheme}")


@app.command()
def export(
    dataset: Annotated[Path, typer.Argument(help="Folder of a prepared dataset.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the two files.")],
) -> None:
    """Write a dataset as train.json (image id to label) and train_base64images.json (image id to data URL)."""
    for path in exchange.export_dataset(load_dataset(dataset), out):
        _say(f"{path}: {path.stat().st_size:,} bytes")


@app.command("import")
def import_command(
    folder: Annotated[Path, typer.Argument(help="Folder with train_base64images.json and perhaps train.json.")],
    out: Out,
    model: Model = None,
    licence: Licence = "unknown",
) -> None:
    """Prepare the images of the two JSON files of the earlier system."""
    labels = folder / exchange.LABELS_NAME
    sources = exchange.import_sources(labels if labels.exists() else None, folder / exchange.IMAGES_NAME)
    _prepare(sources, out, _target(model, folder.absolute().name, licence))


def _target(model: Path | None, name: str, licence: str) -> Target:
    taken = model_input(model or DEFAULT_ARTIFACTS)
    classes = None if model is None else taken.classes
    return Target(taken.image, taken.resizing, classes, name=name, licence=licence)


def _prepare(sources: Sequence[Source], out: Path, target: Target) -> None:
    unclear: dict[str, tuple[str, ...]] = {}
    if target.classes is not None:
        sources, unclear = labelled_as(sources, target.classes)
    with _progress("preparing", len(sources)) as advance:
        manifest = prepare_dataset(sources, out, target, progress=advance)
    _summary(manifest, out)
    _listed(
        "no class of the model, so without label: pictures of", [name for name, found in unclear.items() if not found]
    )
    shared = [f"{name} (means {' or '.join(found)})" for name, found in unclear.items() if found]
    _listed("several classes of the model, so without label: pictures of", shared)


def _listed(what: str, names: Sequence[str]) -> None:
    if names:
        _say(f"{what} {some_of(names, _SHOWN)}")


def _summary(manifest: DatasetManifest, out: Path) -> None:
    labelled = sum(entry.label is not None for entry in manifest.images)
    size, channels = manifest.image.size, manifest.image.channels
    _say(
        f"{out}: {len(manifest.images)} images of {size}x{size}x{channels}, "
        f"{labelled} with one of {len(manifest.classes)} labels"
    )
    for skipped in manifest.skipped[:_SHOWN]:
        _say(f"  skipped {skipped.source}: {skipped.reason}")
    if len(manifest.skipped) > _SHOWN:
        _say(f"  and {len(manifest.skipped) - _SHOWN} more; all stand in the manifest")


@contextmanager
def _progress(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Yield a function that shows how far the work is; on a terminal only."""
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    errors = Console(stderr=True)
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, completed=done)


def _say(text: str) -> None:
    # File names may hold what rich takes for markup, and line breaks.
    console.print(Text(escaped(printable(text))), soft_wrap=True)
