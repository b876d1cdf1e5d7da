"""Shows who has how many images of which class: a table, and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

MAX_COLUMNS = 20
"""Classes that get a column of their own; beyond this the table says how many classes each user sees."""


def counts_table(counts: NDArray[np.int64], users: Sequence[str], classes: Sequence[str]) -> Table:
    """Return a table of int64 [users, classes] image counts, with sums."""
    table = Table(box=None, header_style="bold")
    table.add_column("user", no_wrap=True)
    table.add_column("images", justify="right")
    table.add_column("classes", justify="right")
    shown = len(classes) if len(classes) <= MAX_COLUMNS else 0
    for name in classes[:shown]:
        table.add_column(name, justify="right")
    for user, row in zip([*users, "all"], [*counts, counts.sum(axis=0)], strict=True):
        cells = [str(value) if value else "·" for value in row[:shown].tolist()]
        table.add_row(user, str(row.sum()), str(np.count_nonzero(row)), *cells, end_section=user == "all")
    return table


def draw_counts(
    counts: NDArray[np.int64], users: Sequence[str], classes: Sequence[str], path: Path, *, title: str
) -> None:
    """Draw int64 [users, classes] image counts as a PNG: one row a user, one column a class, darker for more."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows, columns = counts.shape
    figure = Figure(figsize=(min(16, 3 + 0.4 * columns), min(20, 2 + 0.16 * rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    image = axes.imshow(counts, aspect="auto", cmap="Blues", vmin=0, interpolation="nearest")
    axes.set_title(title)
    axes.set_ylabel("user")
    axes.set_xlabel("class")
    if columns <= MAX_COLUMNS:
        axes.set_xticks(range(columns), classes, rotation=45, ha="right")
    if rows <= MAX_COLUMNS:
        axes.set_yticks(range(rows), users)
    figure.colorbar(image, label="images")
    figure.savefig(path, format="png", dpi=110)
