"""The commands about runs that exist: ``run list``, ``run show`` and ``run cancel``."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from agents.cli.console import console
from agents.cli.finding import CONNECT_S, find_run
from agents.runtime.connection import use_running_fedbus
from agents.words.events import ModelEvaluated, ModelPublished, RoundFailed, RoundStarted, RunFinished, RunStarted
from bus.client import Bus
from bus.errors import ConflictingEventError
from bus.words.envelope import Stored
from bus.words.subjects import events_of_type

RunArgument = Annotated[str, typer.Argument(help="The run.")]
LISTED = (RunStarted, RoundStarted, RoundFailed, ModelPublished, ModelEvaluated, RunFinished)


@dataclass
class RunLine:
    """What a list says of one run."""

    started: RunStarted
    time: datetime
    rounds_started: int = 0
    models: int = 0
    accuracy: float | None = None
    code: str | None = None
    finished: RunFinished | None = None

    @property
    def status(self) -> str:
        """In one word."""
        if self.finished is not None:
            return self.finished.status
        return "running" if self.rounds_started else "waiting"


def run_list(
    open_only: Annotated[bool, typer.Option("--open", help="Only those that are not finished.")] = False,
) -> None:
    """List the runs of this bus, oldest first."""
    use_running_fedbus()
    lines = [one for one in asyncio.run(_lines("*")) if not (open_only and one.finished)]
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim")
    for name in ("run", "started", "status", "rounds", "score"):
        table.add_column(name, overflow="fold", justify="right" if name in ("rounds", "score") else "left")
    for one in lines:
        accuracy = "" if one.accuracy is None else f"{one.accuracy:.1%}"
        begun, rounds = f"{one.time.astimezone():%m-%d %H:%M}", f"{one.models}/{one.started.config.rounds}"
        table.add_row(one.started.run, begun, one.status, rounds, accuracy)
    console.print(table if lines else "no runs; fedbus run start starts one")


def run_show(
    run: RunArgument,
    toml: Annotated[bool, typer.Option("--toml", help="A file for run start --config that starts the same.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The event that started it.")] = False,
) -> None:
    """Show what a run was told to do, and how far it is."""
    use_running_fedbus()
    (line,) = asyncio.run(_lines(run))
    if toml:
        # Here, because it is heavy.
        from agents.cli.run_file import as_toml

        typer.echo(as_toml(line.started), nl=False)
        return
    if as_json:
        typer.echo(line.started.model_dump_json(indent=2))
        return
    config = line.started.config
    reason = f": {line.finished.reason}" if line.finished and line.finished.reason else ""
    rows: dict[str, str | Text] = {
        "status": Text(f"{line.status}{reason}{f' [{line.code}]' if line.code else ''}"),
        "started": f"{line.time.astimezone():%Y-%m-%d %H:%M:%S}",
        "models": f"{line.models} of {config.rounds} rounds",
        "accuracy": "not evaluated yet" if line.accuracy is None else f"{line.accuracy:.1%}",
        "users": f"{config.users} with {config.images_per_user} images, {config.fraction:.0%} a round",
        "quorum": f"{config.quorum.fraction:.0%} within {config.quorum.deadline_s:g} s",
        "labels": config.labelling.provider,
        "strategy": config.strategy,
        "training": f"{config.training.epochs} epochs, rate {config.training.learning_rate:g}, "
        f"{config.training.augmentations} copies, {config.training.encoding}",
        "seed": str(config.seed),
    }
    table = Table(box=None, pad_edge=False, show_header=False, title=run, title_justify="left")
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, value)
    console.print(table)


def run_cancel(
    run: RunArgument,
    reason: Annotated[str, typer.Option("--reason", help="Why, for those who look at it later.")] = "",
) -> None:
    """End a run: every agent drops it, and clients put its tasks away. Its events and models stay."""
    use_running_fedbus()
    ended = asyncio.run(_cancel(run, reason))
    if ended.status == "cancelled":
        console.print(f"{run} is cancelled")
    else:
        console.print(f"{run} had ended before: {ended.status}")
        raise typer.Exit(1)


async def _cancel(run: str, reason: str) -> RunFinished:
    """The event that ended the run: this one, or what was there before."""
    (line,) = await _lines(run)
    if line.finished is not None:
        return line.finished
    async with Bus.connect(name="cli", wait_s=CONNECT_S) as bus:
        cancelled = RunFinished(run=run, status="cancelled", reason=reason[:500], rounds=line.models)
        try:
            await bus.publish(cancelled)
        except ConflictingEventError:
            # It ended between the two.
            (line,) = await _lines(run)
            return line.finished or cancelled
    return cancelled


async def _lines(run: str) -> list[RunLine]:
    """The runs of this name, or all of them for ``*``, oldest first.

    Raises:
        RunUnknownError: a name that no run has.
    """
    found: dict[str, RunLine] = {}
    async with Bus.connect(name="cli", wait_s=CONNECT_S) as bus:
        if run != "*":
            await find_run(bus, run)
        async with bus.follow([events_of_type(one.TYPE, run) for one in LISTED], live=False) as items:
            async for item in items:
                if isinstance(item, Stored):
                    _fold(found, item)
    return list(found.values())


def _fold(found: dict[str, RunLine], stored: Stored) -> None:
    data = stored.event.data
    if isinstance(data, RunStarted):
        found.setdefault(data.run, RunLine(data, stored.time))
    if (line := found.get(data.run)) is None:
        return
    match data:
        case RoundStarted():
            line.rounds_started += 1
        case ModelPublished():
            line.models += 1
        case ModelEvaluated():
            line.accuracy = data.updated.accuracy
        case RoundFailed():
            line.code = line.code or data.code
        case RunFinished():
            line.finished = line.finished or data
