"""The commands that look at runs: ``watch``, ``record``, ``replay`` and ``report``."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from agents.audit.replay import ROLES, replay_run
from agents.audit.report import build_report, summary_table, write_report
from agents.audit.rescoring import recorded_held_out
from agents.cli.client_mix import ClientMix
from agents.cli.console import console, errors
from agents.cli.display import RunDisplay, run_display
from agents.cli.finding import CONNECT_S, find_run
from agents.cli.lookout import lookout
from agents.core.learning.scores import EvaluationDetails
from agents.core.strategies.registry import ALLOWED
from agents.core.views.run import RunView
from agents.runtime.connection import use_running_fedbus
from agents.runtime.tasks import background
from agents.words.events import Progress, RunFinished
from bus.client import Bus, CaughtUp
from bus.recording.files import check_recording_name, load_recording, record
from bus.recording.formats import FORMAT
from bus.words.envelope import Stored
from bus.words.subjects import events_of

SHOWN_DIFFERENCES = 50
RunArgument = Annotated[str, typer.Argument(help="The run.")]


def watch(
    run: RunArgument,
    since: Annotated[int, typer.Option("--since", min=0, help="Begin after this stream sequence.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line: sequence, time, event.")] = False,
) -> None:
    """Show a run from its beginning (or --since) and follow it live to its end; join as late as you like."""
    use_running_fedbus()
    status = asyncio.run(_watch(run, since, as_json))
    raise typer.Exit(0 if status == "completed" else 1)


async def _watch(run: str, since: int, as_json: bool) -> str:
    async with Bus.connect(name="watch", wait_s=CONNECT_S) as bus:
        await find_run(bus, run)
        # Read to where it ends now, so that what is lost of it is named (in the log) before anybody waits for more.
        await bus.unreadable_subjects(events_of(run))
        if as_json:
            return await _watch_as_json(bus, run, since)
        with run_display(run, since=since) as display:
            async with lookout(bus, display.view) as one, background(one.tell_when_quiet()):
                return (await follow_to_the_end(bus, run, display)).status


async def _watch_as_json(bus: Bus, run: str, since: int) -> str:
    async with bus.follow(events_of(run), after=since) as items:
        async for item in items:
            if isinstance(item, Stored):
                typer.echo(as_json_line(item))
                if isinstance(item.event.data, RunFinished):
                    return item.event.data.status
    return "cut"


def as_json_line(stored: Stored) -> str:
    """One event with its place in the stream, as one line of JSON."""
    body = {"sequence": stored.sequence, "time": stored.time.isoformat(), "event": json.loads(stored.event.to_json())}
    return json.dumps(body, separators=(",", ":"))


async def follow_to_the_end(bus: Bus, run: str, display: RunDisplay) -> RunFinished:
    """Shows every event and all live progress until the run is finished."""
    async with (
        background(_show_progress(bus, run, display)),
        bus.follow(events_of(run)) as items,
    ):
        async for item in items:
            if isinstance(item, CaughtUp):
                continue
            display.take(item)
            if isinstance(item.event.data, RunFinished):
                return item.event.data
    raise AssertionError("a live subscription has no end")


async def _show_progress(bus: Bus, run: str, display: RunDisplay) -> None:
    async with bus.hear(Progress, run=run) as items:
        async for progress in items:
            display.note(progress)


def record_command(
    run: RunArgument,
    out: Annotated[Path, typer.Option("-o", "--out", help="NAME.jsonl or NAME.jsonl.gz.")],
    include: Annotated[
        str, typer.Option("--include", help="replay: what a replay needs; all: images and artifacts too.")
    ] = "replay",
) -> None:
    """Write a run's events and the objects that they name to one file."""
    if include not in ("replay", "all"):
        raise typer.BadParameter("--include is replay or all")
    check_recording_name(out)
    use_running_fedbus()
    kind: Literal["replay", "all"] = "all" if include == "all" else "replay"
    asyncio.run(_record(run, out, kind))


async def _record(run: str, out: Path, include: Literal["replay", "all"]) -> None:
    async with Bus.connect(name="record", wait_s=CONNECT_S) as bus:
        await find_run(bus, run)
        counts = await record(bus, run, out, include=include)
    console.print(f"{out}: {counts.events} events, {counts.objects} objects, {out.stat().st_size / 1e6:.1f} MB")


def replay(
    file: Annotated[Path, typer.Argument(help="A recording.", exists=True, dir_okay=False)],
    agent: Annotated[
        list[str] | None, typer.Option("--agent", help=f"Only this one's events; repeat it. {', '.join(ROLES)}.")
    ] = None,
    strategy: Annotated[
        list[str] | None,
        typer.Option("--strategy", metavar="MODULE:CLASS", help="A class of your own that may be imported."),
    ] = None,
) -> None:
    """Run every agent's rules over a recording, without broker or browser, and compare every event and every bit."""
    roles = [role for role in ROLES if role in (agent or ROLES)]
    os.environ[ALLOWED] = ",".join([*filter(None, [os.environ.get(ALLOWED)]), *(strategy or ())])
    if unknown := set(agent or ()) - set(ROLES):
        raise typer.BadParameter(f"{', '.join(sorted(unknown))} is not one of {', '.join(ROLES)}")
    recording = load_recording(file)
    with recorded_held_out(recording) if "evaluator" in roles else contextlib.nullcontext() as held_out:
        outcome = replay_run(recording.events, recording.objects, roles=roles, held_out=held_out)
    console.print(f"{recording.run}: {len(recording.events)} events")
    if recording.format < FORMAT:
        console.print(f"recorded in format {recording.format}; its events were brought up to format {FORMAT}")
    for role in roles:
        wrong = sum(one.role == role for one in outcome.differences)
        console.print(f"{role:<11}{outcome.checked[role]:>6} replayed, {wrong or 'none'} differ")
    if "evaluator" in roles and held_out is None:
        console.print(
            "The scores were checked against their details; a recording with --include all runs the models too."
        )
    for number, digest in sorted(outcome.models.items()):
        console.print(f"round {number:>3}  {digest}", soft_wrap=True)
    for difference in outcome.differences[:SHOWN_DIFFERENCES]:
        errors.print(str(difference), soft_wrap=True, markup=False)
    if outcome.differences:
        errors.print(f"[red]differs[/red] at {len(outcome.differences)} places")
        raise typer.Exit(1)
    if "aggregator" in roles:
        console.print(f"final model {outcome.final_model or 'none'}: the same bits as recorded", soft_wrap=True)


def report(
    run: RunArgument,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Folder; default: runs/RUN.")] = None,
) -> None:
    """Write report.json and report.html of a run, finished or not."""
    use_running_fedbus()
    asyncio.run(_report(run, out or Path("runs") / run))


async def _report(run: str, out: Path) -> None:
    async with Bus.connect(name="report", wait_s=CONNECT_S) as bus:
        await find_run(bus, run)
        await make_report(bus, run, out)


async def make_report(bus: Bus, run: str, out: Path, *, clients: ClientMix | None = None) -> None:
    """Reads the run, writes its report into ``out`` and prints the summary with the paths.

    Args:
        clients: how many of each kind were started; without it, those that gave an update are counted.
    """
    view = RunView.of(await events_so_far(bus, run))
    newest = view.newest_evaluation
    details = EvaluationDetails.model_validate_json(await bus.objects.get(newest.details)) if newest else None
    counts = {"browser": clients.browser, "native": clients.native} if clients else None
    result = build_report(view, details, clients=counts)
    paths = write_report(result, out)
    console.print(summary_table(result))
    for path in paths:
        console.print(str(path), soft_wrap=True)


async def events_so_far(bus: Bus, run: str) -> Sequence[Stored]:
    """All events that the run has now, in order."""
    async with bus.follow(events_of(run), live=False) as items:
        return [item async for item in items if isinstance(item, Stored)]
