"""The short table that a run ends with."""

from __future__ import annotations

from rich import box
from rich.table import Table
from rich.text import Text

from agents.audit.report.model import Report

NONE = "–"


def summary_table(report: Report) -> Table:
    """Accuracy of the base model and of each round's model, with what each round took."""
    title = Text(f"{report.run}: {report.status}")
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, padding=0)
    table.add_column("model", no_wrap=True)
    for heading in ("accuracy", "loss", "mismatched", "trained", "updates", "seconds"):
        table.add_column(heading, justify="right")
    if report.base is not None:
        table.add_row("base", percent(report.base.accuracy), f"{report.base.loss:.3f}", *[NONE] * 4)
    for one in report.rounds:
        table.add_row(
            f"round {one.round}",
            percent(one.accuracy),
            number(one.loss, 3),
            str(one.mismatched_images),
            str(one.trained_images),
            f"{one.updates_accepted}/{one.updates_accepted + one.updates_missing}",
            number(one.seconds, 1),
        )
    table.caption = f"{report.wall_seconds:.1f} s in all"
    return table


def percent(fraction: float | None) -> str:
    """``fraction`` of 1 as a percentage with one digit."""
    return NONE if fraction is None else f"{fraction:.1%}"


def number(value: float | None, digits: int) -> str:
    """``value`` with so many digits after the point."""
    return NONE if value is None else f"{value:.{digits}f}"
