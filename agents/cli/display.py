"""Shows a run's progress: a live picture in a terminal, one line per notable event anywhere else."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from agents.cli.console import console
from agents.cli.lines import line_about
from agents.core.views.run import RunView
from agents.words.events import Progress
from bus.words.envelope import Stored


class RunDisplay:
    """Folds a run's events from the first one on and shows where it is; lines begin after the sequence ``since``."""

    def __init__(self, run: str, live: Live | None, since: int = 0) -> None:
        self.view = RunView(run)
        self._live = live
        self._since = since

    def take(self, stored: Stored) -> None:
        """Shows one event."""
        if not self.view.fold(stored) or stored.sequence <= self._since or self._live is not None:
            return
        if (line := line_about(stored, self.view)) is not None:
            console.print(Text(f"{stored.time.astimezone():%H:%M:%S}  {line}"), soft_wrap=True)

    def note(self, progress: Progress) -> None:
        """Shows a client's progress (in a terminal only)."""
        self.view.note(progress)

    def __rich__(self) -> RenderableType:
        return render(self.view)


@contextlib.contextmanager
def run_display(run: str, *, since: int = 0) -> Iterator[RunDisplay]:
    """A display of one run on standard output."""
    if not console.is_terminal:
        yield RunDisplay(run, None, since)
        return
    with Live(console=console, refresh_per_second=8) as live:
        display = RunDisplay(run, live, since)
        live.update(display)
        yield display


def render(view: RunView) -> RenderableType:
    """The live picture: a line on the run, a table of its rounds, a bar for the one that is open, who is at work."""
    parts: list[RenderableType] = [Text(_headline(view), style="bold")]
    if view.base:
        parts.append(_rounds(view))
    open_rounds = [one for one in view.rounds.values() if one.published_at is None and one.users]
    for one in open_rounds[-1:]:
        bar = Table.grid(padding=(0, 1))
        bar.add_row(
            f"round {one.number}",
            ProgressBar(total=one.users, completed=one.submitted, width=12),
            f"{one.submitted} of {one.users} updates, quorum {one.quorum}",
        )
        parts.append(bar)
    for client, progress in sorted((one.client, one.progress) for one in view.clients.values() if one.progress):
        loss = f", loss {progress.loss:.3f}" if progress.loss is not None else ""
        parts.append(
            Text(
                f"  {client}: {progress.user} {progress.phase} {progress.images_seen} images, "
                f"{progress.trained_images} trained{loss}",
                style="dim",
            )
        )
    return Group(*parts)


def _headline(view: RunView) -> str:
    if view.finished is not None:
        codes = [
            f" [{one.rules.failed.code}]" for one in view.rounds.values() if one.rules.failed and one.rules.failed.code
        ]
        reason = f": {view.finished.reason}" if view.finished.reason else ""
        return f"{view.run}: {view.finished.status}{reason}{''.join(codes)}"
    if len(view.labelled) < view.users:
        return f"{view.run}: labelled the images of {len(view.labelled)} of {view.users} users"
    done = sum(one.published_at is not None for one in view.rounds.values())
    return f"{view.run}: {done} of {view.rounds_planned or '?'} rounds done"


def _rounds(view: RunView) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim")
    for name in ("round", "accuracy", "loss", "mismatched", "trained", "updates", "seconds"):
        table.add_column(name, justify="right")
    if view.base is not None:
        table.add_row("base", f"{view.base.accuracy:.1%}", f"{view.base.loss:.3f}", "", "", "", "")
    for one in view.rounds.values():
        if one.evaluation is not None:
            score = one.evaluation.updated
            table.add_row(
                str(one.number),
                f"{score.accuracy:.1%}",
                f"{score.loss:.3f}",
                str(one.mismatched_images),
                str(one.trained_images),
                f"{one.submitted}/{one.users}",
                f"{one.seconds:.1f}" if one.seconds is not None else "",
            )
    return table
