"""``fedbus data labels``: asks a model for labels, matches answers to classes, and settles what is left by hand."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from agents.core.labels.errors import LabelsFileError
from agents.core.labels.label_file import LabelFile, match_answers
from agents.core.labels.matching import DEFAULT_THRESHOLD
from agents.labeller.errors import NothingLabelledError
from agents.labeller.label_file import read_answers, read_label_file, write_label_file
from agents.labeller.settings import LabellerSettings
from agents.words.run_config import LabellingSpec
from bus.process.logs import escaped
from data.class_names import read_class_names
from data.dataset import Dataset, load_dataset

app = typer.Typer(help="Labels for images: ask a model, match its answers, settle the rest.", no_args_is_help=True)
Classes = Annotated[Path, typer.Option("--classes", help="Class names, one a line or a JSON list; commas: synonyms.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="File to write.")]
Threshold = Annotated[
    float, typer.Option("--threshold", min=0, max=100, help="Least similarity of a close spelling, in percent.")
]
_LIMITS = LabellingSpec()


@app.command()
def match(
    answers: Annotated[Path, typer.Argument(help="JSON file: image id to answer.")],
    classes: Classes,
    out: Out,
    threshold: Threshold = DEFAULT_THRESHOLD,
) -> None:
    """Match answers to classes; ambiguous and unknown ones are set aside with their candidates."""
    file = match_answers(read_answers(answers), read_class_names(classes), threshold=threshold)
    write_label_file(file, out)
    _say(file, out)


@app.command()
def review(
    file: Annotated[Path, typer.Argument(help="File that match or run wrote.")],
    settled: Annotated[
        list[str] | None, typer.Option("--set", metavar="ID=CLASS", help="Settle one answer; can be given again.")
    ] = None,
) -> None:
    """Show the answers that were set aside and settle them: a number chooses a candidate, Enter leaves one open."""
    labels = read_label_file(file)
    if settled:
        for setting in settled:
            id_, equals, class_name = setting.partition("=")
            if not equals:
                raise typer.BadParameter(f"--set takes ID=CLASS, not {setting!r}")
            labels.settle(id_, class_name)
        write_label_file(labels, file)
    elif sys.stdin.isatty() and sys.stdout.isatty():
        for id_ in labels.set_aside:
            _settle(labels, id_, file)
    else:
        for id_, aside in labels.set_aside.items():
            near = ", ".join(aside.candidates) or "no class"
            typer.echo(f"{escaped(id_)}\t{aside.reason}\t{aside.answer!r}\tnear: {escaped(near)}")
    _say(labels, file)


def _settle(labels: LabelFile, id_: str, path: Path) -> None:
    """Asks about one answer until a class is chosen or it is left open; every choice is written at once."""
    aside = labels.set_aside[id_]
    typer.echo(f"\n{escaped(id_)}: {aside.answer!r} ({aside.reason.replace('_', ' ')})")
    for number, name in enumerate(aside.candidates, start=1):
        typer.echo(f"  {number}  {name}")
    while choice := typer.prompt("number or class", default="", show_default=False).strip():
        chosen = choice
        if choice.isdigit() and 0 < int(choice) <= len(aside.candidates):
            chosen = aside.candidates[int(choice) - 1]
        try:
            labels.settle(id_, chosen)
        except LabelsFileError as error:
            typer.echo(error.message)
            continue
        write_label_file(labels, path)
        return


@app.command()
def run(
    dataset: Annotated[Path, typer.Argument(help="Dataset folder of fedbus data prepare.")],
    out: Out,
    classes: Annotated[Path | None, typer.Option("--classes", help="Class names; default: the dataset's own.")] = None,
    model: Annotated[str, typer.Option("--model", help="Model to ask.")] = _LIMITS.model,
    detail: Annotated[str, typer.Option("--detail", help="Resolution that the model sees: low or high.")] = "low",
    images_per_request: Annotated[
        int, typer.Option("--images-per-request", min=1, max=50, help="Images asked about together.")
    ] = _LIMITS.images_per_request,
    concurrency: Annotated[
        int, typer.Option("--concurrency", min=1, max=64, help="Requests at the same time.")
    ] = _LIMITS.concurrency,
    max_cost: Annotated[float | None, typer.Option("--max-cost", min=0, help="US dollars that may be spent.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Estimate tokens and money, and ask nothing.")] = False,
) -> None:
    """Ask a model (GPT-4o by default) for the label of every image; answers that were paid for are not asked again."""
    if detail not in ("low", "high"):
        raise typer.BadParameter(f"--detail is low or high, not {detail!r}")
    opened = load_dataset(dataset)
    names = read_class_names(classes) if classes else opened.classes
    if len(names) < 2:
        raise LabelsFileError(f"{dataset} has no classes", hint="give --classes FILE")
    if not len(opened):
        raise NothingLabelledError(f"{dataset} has no images")
    spec = LabellingSpec.model_validate(
        {
            "provider": "openai",
            "model": model,
            "detail": detail,
            "images_per_request": images_per_request,
            "concurrency": concurrency,
        }
    )
    settings = LabellerSettings()
    if max_cost is not None:
        settings = settings.model_copy(update={"max_cost": max_cost})
    file = asyncio.run(_run(opened, names, spec, settings, dry_run=dry_run))
    if file is not None:
        write_label_file(file, out)
        _say(file, out)
        if not file.matched:
            reasons = Counter(aside.reason.replace("_", " ") for aside in file.set_aside.values())
            counted = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
            raise NothingLabelledError(f"no image got a label: {counted}", hint=f"see fedbus data labels review {out}")


async def _run(
    dataset: Dataset, classes: Sequence[str], spec: LabellingSpec, settings: LabellerSettings, *, dry_run: bool
) -> LabelFile | None:
    from agents.labeller.label_images import estimate_images, label_images

    estimated = estimate_images(dataset.images, classes, spec, settings)
    cost = "price unknown" if estimated.cost is None else f"about ${estimated.cost:.2f}"
    typer.echo(
        f"{estimated.images} of {len(dataset)} images to ask about, {estimated.requests} requests, "
        f"{estimated.prompt_tokens} + {estimated.completion_tokens} tokens, {cost}"
    )
    if dry_run:
        return None
    ids = [image.id for image in dataset.manifest.images]
    return await label_images(dict(zip(ids, dataset.images, strict=True)), classes, spec, settings)


def _say(file: LabelFile, path: Path) -> None:
    typer.echo(f"{path}: {len(file.matched)} matched, {len(file.ambiguous)} ambiguous, {len(file.rejected)} rejected")
