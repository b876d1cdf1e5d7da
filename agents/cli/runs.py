"""The commands that start things: ``run start`` and ``round start``."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from agents.cli import options as o
from agents.cli.console import console
from agents.cli.finding import CONNECT_S, find_run
from agents.cli.lookout import tell_unless_begun
from agents.cli.run_file import RunObjects, read_run_file
from agents.cli.run_setup import RunSources, start_run, start_run_again
from agents.core.rounds.plan import RunState
from agents.runtime.connection import use_running_fedbus
from agents.words.events import ImagesLabelled, RoundStarted, RunFinished
from agents.words.run_config import RunConfig
from bus.client import Bus
from bus.errors import FedbusError
from bus.words.envelope import Stored
from bus.words.subjects import checked, events_of, events_of_type

REFUSAL_S = 3.0
TELLING = ("round.started", "round.failed", "model.published", "run.finished")
"""The events that say which round of a run comes next."""
round_app = typer.Typer(no_args_is_help=True, help="Start rounds.")


class RunNameTakenError(FedbusError):
    """There are events of a run of this name already."""

    code = "run_exists"


class RunRefusedError(FedbusError):
    """The labeller cannot label the run that was just started, which has failed with its reason."""

    code = "run_refused"


class RoundRefusedError(FedbusError):
    """A round cannot be started now."""

    code = "round_refused"


def new_run_name(prefix: str = "run") -> str:
    """A name that sorts by time and that no other run has."""
    return f"{prefix}-{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def run_start(
    context: typer.Context,
    name: Annotated[str, typer.Option("--name", help="Name of the run; default: made from the time.")] = "",
    go: Annotated[bool, typer.Option("--go", help="Start round 1 too.")] = False,
    settings: Annotated[
        Path | None, typer.Option("--config", metavar="FILE.toml", help="All settings, in place of the options below.")
    ] = None,
    users: o.Users = 100,
    images: o.Images = 20,
    rounds: o.Rounds = 10,
    seed: o.Seed = 0,
    quorum: o.Quorum = 1.0,
    fraction: o.Fraction = 1.0,
    labeller: o.Labeller = "truth",
    label_model: o.LabelModel = "gpt-4o",
    label_noise: o.LabelNoise = 0.05,
    artifacts: o.Artifacts = o.ARTIFACTS,
    data: o.Data = o.DATA,
    held_out: o.HeldOut = o.HELD_OUT,
    partition: o.Partition = "in-order",
    learning_rate: o.LearningRate = None,
    learning_rate_decay: o.LearningRateDecay = 0.75,
    epochs: o.Epochs = 1,
    augmentations: o.Augmentations = 6,
    encoding: o.Encoding = "float32",
    deadline: o.Deadline = 300.0,
    grace: o.Grace = 0.0,
    max_update_norm: o.MaxNorm = None,
    over_norm: o.OverNorm = "refuse",
    clip_to_median: o.ClipToMedian = o.CLIP_TO_MEDIAN,
    strategy: o.StrategyName = "fedavg",
    strategy_set: o.StrategySet = None,
) -> None:
    """Put a run's data and model on the bus and publish run.started; the labeller begins at once."""
    run = checked(name or new_run_name())
    if settings is not None:
        _refuse_others(context)
        told = read_run_file(settings)
        use_running_fedbus()
        asyncio.run(_run_start(run, told.config, told.sources, go))
        return
    config = o.make_config(
        artifacts=artifacts,
        users=users,
        images=images,
        rounds=rounds,
        seed=seed,
        quorum=quorum,
        fraction=fraction,
        labeller=labeller,
        label_model=label_model,
        label_noise=label_noise,
        learning_rate=learning_rate,
        learning_rate_decay=learning_rate_decay,
        epochs=epochs,
        augmentations=augmentations,
        encoding=encoding,
        deadline=deadline,
        grace=grace,
        max_update_norm=max_update_norm,
        over_norm=over_norm,
        clip_to_median=clip_to_median,
        strategy=strategy,
        strategy_set=strategy_set,
    )
    use_running_fedbus()
    asyncio.run(_run_start(run, config, RunSources(artifacts, data, held_out, partition), go))


def _refuse_others(context: typer.Context) -> None:
    """An option beside a file would have to win or to lose: neither is what everybody expects."""
    for name in context.params.keys() - {"name", "go", "settings"}:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise typer.BadParameter(f"--{name.replace('_', '-')} belongs into the file of --config")


def _say_started(run: str, config: RunConfig, go: bool) -> None:
    who = f"{config.users} users with {config.images_per_user} images each"
    console.print(f"{run}: {who}, {config.rounds} rounds, {config.strategy}")
    if go:
        console.print(f"round 1 started; watch it: fedbus watch {run}")
    else:
        console.print(f"start its first round: fedbus round start {run}")


async def _run_start(run: str, config: RunConfig, sources: RunSources | RunObjects, go: bool) -> None:
    async with Bus.connect(name="cli", wait_s=CONNECT_S) as bus:
        await check_free(bus, run)
        if isinstance(sources, RunObjects):
            await start_run_again(bus, run, config, sources.model_dump())
        else:
            await start_run(bus, run, config, sources)
        if config.labelling.provider != "truth":
            await check_refusal(bus, run)
        if go:
            await bus.publish(RoundStarted(run=run, round=1))
        _say_started(run, config, go)
        await tell_unless_begun(bus, run)


async def check_refusal(bus: Bus, run: str) -> None:
    """Hears what the labeller says to a new run: only its own process knows whether it has a key or a file.

    It may be away, or ask for long: who has said nothing after ``REFUSAL_S`` has refused nothing.

    Raises:
        RunRefusedError: it ended the run.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(REFUSAL_S), bus.follow(events_of(run)) as items:
            async for item in items:
                if isinstance(item, Stored) and isinstance(item.event.data, ImagesLabelled):
                    return
                if isinstance(item, Stored) and isinstance(item.event.data, RunFinished):
                    raise RunRefusedError(
                        f"run {run} is {item.event.data.status}: {item.event.data.reason}",
                        hint="mend that where the labeller runs, and start another run",
                    )


@round_app.command("start")
def round_start(
    run: Annotated[str, typer.Argument(help="The run.")],
    number: Annotated[int, typer.Option("--round", min=1, help="Which round.")] = 1,
) -> None:
    """Publish round.started: anyone may, with any NATS client; later rounds of the run follow by themselves."""
    use_running_fedbus()
    asyncio.run(_round_start(run, number))


async def _round_start(run: str, number: int) -> None:
    async with Bus.connect(name="cli", wait_s=CONNECT_S) as bus:
        await check_round(bus, run, number)
        created = (await bus.publish(RoundStarted(run=run, round=number))).created
        console.print(f"round {number} of {run} {'started' if created else 'had been started before'}")
        if created:
            await tell_unless_begun(bus, run)


async def check_free(bus: Bus, run: str) -> None:
    """Sees to it that nothing was said of a run of this name.

    Raises:
        RunNameTakenError: something was.
    """
    async with bus.follow(events_of(run), live=False) as items:
        async for item in items:
            if isinstance(item, Stored):
                raise RunNameTakenError(
                    f"the name {run!r} is taken: {item.event.data.TYPE} of {item.time:%Y-%m-%d %H:%M:%S} UTC",
                    hint="choose another --name, or leave it out",
                )


async def check_round(bus: Bus, run: str, number: int) -> None:
    """Sees to it that round ``number`` may be started now, as the dispatcher does.

    Raises:
        RunUnknownError: there is no such run.
        RoundRefusedError: it is over, has no such round, or another round comes first.
    """
    state = RunState(await find_run(bus, run))
    async with bus.follow([events_of_type(one, run) for one in TELLING], live=False) as items:
        async for item in items:
            if isinstance(item, Stored):
                state.fold(item)
    if (reason := state.why_not(number)) is not None:
        hint = "start another run: fedbus run start" if state.finished else "later rounds of a run follow by themselves"
        raise RoundRefusedError(reason, hint=hint)
