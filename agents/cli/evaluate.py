"""``fedbus evaluate``: compares any two models on a dataset, without a broker."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from agents.audit.compare import Comparison
from agents.audit.report.table import percent
from agents.runtime.shipped import DEFAULT_ARTIFACTS

MAX_CLASS_ROWS = 40


def evaluate(
    model: Annotated[
        list[Path],
        typer.Option(
            "--model",
            help="Given twice: an ONNX file of model export, an artifact folder, or what belongs to --artifacts: "
            "a folder in Hugging Face's layout, or a file of trainable parameters (.f32 or .safetensors).",
        ),
    ],
    data: Annotated[Path, typer.Option("--data", help="Dataset folder, or a shard with labels.")],
    artifacts: Annotated[
        Path, typer.Option("--artifacts", help="Artifact folder that folders without a graph and files belong to.")
    ] = DEFAULT_ARTIFACTS,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for comparison.json and comparison.svg.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Compare two models on labelled images: accuracy, loss, per class, and where they differ."""
    if len(model) != 2:
        raise typer.BadParameter(f"--model is given twice, not {len(model)} times")
    # Here, because the engine takes seconds to import and every other command would wait for it.
    from agents.audit.model_comparison import compare_models, write_comparison

    result = compare_models(model[0], model[1], data, artifacts=artifacts)
    if out is not None:
        write_comparison(result, out)
    if json:
        typer.echo(result.model_dump_json(indent=2))
    else:
        console = Console(highlight=False)
        for letter, path in (("A", result.a.name), ("B", result.b.name)):
            console.print(Text(f"{letter}: {path}"), soft_wrap=True)
        console.print(comparison_table(result))
        if out is not None:
            typer.echo(out / "comparison.json")
            typer.echo(out / "comparison.svg")


def comparison_table(result: Comparison) -> Table:
    """Both models' accuracy and loss, then the classes with the largest changes."""
    table = Table()
    for heading in ("", "A", "B", "change"):
        table.add_column(heading, justify="left" if not heading else "right")
    a, b = result.a.score, result.b.score
    table.add_row("accuracy", percent(a.accuracy), percent(b.accuracy), _points(b.accuracy - a.accuracy))
    table.add_row("loss", f"{a.loss:.4f}", f"{b.loss:.4f}", f"{b.loss - a.loss:+.4f}")
    table.add_row("only this one right", str(result.only_a_right), str(result.only_b_right), "", end_section=True)
    rows = [
        (name, x, y)
        for name, x, y in zip(result.classes, result.a.by_class.per_class, result.b.by_class.per_class, strict=True)
        if x is not None and y is not None
    ]
    rows.sort(key=lambda row: row[1] - row[2])
    if len(rows) > MAX_CLASS_ROWS:
        rows = rows[: MAX_CLASS_ROWS // 2] + rows[-MAX_CLASS_ROWS // 2 :]
    for name, x, y in rows:
        table.add_row(Text(name), percent(x), percent(y), _points(y - x))
    table.caption = (
        f"{result.images} images: {result.both_right} both right, {result.both_wrong} both wrong, "
        f"{result.same_prediction} predicted alike"
    )
    return table


def _points(change: float) -> str:
    return f"{100 * change:+.1f} points"
