"""``fedbus demo``: one federated run from nothing to its report, on this machine alone."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from agents.audit.model_export import Form, fetched_model, write_model
from agents.cli import options as o
from agents.cli.chromium import find_chromium
from agents.cli.client_mix import ClientMix, Threads, parse_clients
from agents.cli.console import console
from agents.cli.display import run_display
from agents.cli.finding import CONNECT_S
from agents.cli.inspect_run import follow_to_the_end, make_report
from agents.cli.run_setup import RunSources, read_sources, start_run
from agents.cli.runs import new_run_name
from agents.cli.serve import until_interrupted
from agents.cli.system import running_system
from agents.labeller.providers import check_provider
from agents.labeller.settings import LabellerSettings
from agents.runtime.shipped import PAGE
from agents.words.events import RoundStarted
from agents.words.run_config import RunConfig
from bus.client import Bus
from bus.errors import FedbusError
from bus.process.folders import temporary_folder
from bus.process.logs import configure
from bus.recording.files import record

RECORDING = "recording.jsonl.gz"


class PageMissingError(FedbusError):
    """The browser client was not built."""

    code = "page_missing"


def demo(
    users: o.Users = 100,
    images: o.Images = 20,
    rounds: o.Rounds = 10,
    clients: Annotated[
        str, typer.Option("--clients", help="browser:2, native:2 or browser:1,native:1; default: browser:2 if it can.")
    ] = "",
    seed: o.Seed = 0,
    quorum: o.Quorum = 1.0,
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the report; default: runs/RUN.")] = None,
    artifacts: o.Artifacts = o.ARTIFACTS,
    data: o.Data = o.DATA,
    held_out: o.HeldOut = o.HELD_OUT,
    labeller: o.Labeller = "truth",
    label_model: o.LabelModel = "gpt-4o",
    learning_rate: o.LearningRate = None,
    epochs: o.Epochs = 1,
    encoding: o.Encoding = "float32",
    clip_to_median: o.ClipToMedian = o.CLIP_TO_MEDIAN,
    strategy: o.StrategyName = "fedavg",
    strategy_set: o.StrategySet = None,
    threads: Threads = 1,
    port: Annotated[int, typer.Option("--port", min=0, max=65_535, help="Port of the page; 0: a free one.")] = 0,
) -> None:
    """Run everything once: broker, agents, clients, all rounds; then the report, and exit 0 if the run completed."""
    mix = parse_clients(clients) if clients else usual_clients()
    if mix.browser:
        find_chromium()
        check_page()
    config = o.make_config(
        artifacts=artifacts,
        users=users,
        images=images,
        rounds=rounds,
        seed=seed,
        quorum=quorum,
        labeller=labeller,
        label_model=label_model,
        learning_rate=learning_rate,
        epochs=epochs,
        encoding=encoding,
        clip_to_median=clip_to_median,
        strategy=strategy,
        strategy_set=strategy_set,
    )
    check_provider(labeller, LabellerSettings())
    configure("demo")
    run = new_run_name("demo")
    sources = RunSources(artifacts, data, held_out)
    # Before anything is started: what does not fit is told at once.
    read_sources(config, sources)
    status = asyncio.run(
        until_interrupted(_demo(run, config, sources, mix, out or Path("runs") / run, threads=threads, port=port))
    )
    if status != "completed":
        raise typer.Exit(1)


def usual_clients() -> ClientMix:
    """Two headless browsers where there are Chromium and the page, else two native clients, and says why."""
    try:
        find_chromium()
        check_page()
    except FedbusError as error:
        console.print(f"{error.message}: two native clients train instead ({error.hint})", soft_wrap=True)
        return ClientMix(native=2)
    return ClientMix(browser=2)


def check_page() -> str:
    """The path of the built page.

    Raises:
        PageMissingError: it is not.
    """
    page = PAGE / "index.html"
    if not page.is_file():
        raise PageMissingError(
            "the browser client is not built",
            hint="make setup builds it (needs Node 20), or train with --clients native:2",
        )
    return str(page)


async def _demo(
    run: str, config: RunConfig, sources: RunSources, mix: ClientMix, out: Path, *, threads: int, port: int
) -> str:
    """Runs the demo and answers with the run's final status."""
    out.mkdir(parents=True, exist_ok=True)
    with temporary_folder("demo") as folder:
        console.print(f"{run}: starting broker and agents; their logs are in {out / 'logs'}")
        async with running_system(folder, out / "logs", nats_port=None, gateway_port=port) as system:
            url = f"{system.connection.gateway_url}/#token={system.connection.join_token}"
            console.print(f"clients {mix}; a page of your own may join: {url}", soft_wrap=True)
            system.start_clients(mix, threads=threads)
            async with Bus.connect(system.connection.settings(), name="demo", wait_s=CONNECT_S) as bus:
                started = await start_run(bus, run, config, sources)
                await bus.publish(RoundStarted(run=run, round=1))
                with run_display(run) as display:
                    finished = await follow_to_the_end(bus, run, display)
                await record(bus, run, out / RECORDING, include="replay")
                await make_report(bus, run, out, clients=mix)
                console.print(str(out / RECORDING), soft_wrap=True)
                async with fetched_model(bus, started, None) as model:
                    for path in await asyncio.to_thread(write_model, model, out, (Form.ONNX,)):
                        console.print(str(path), soft_wrap=True)
    return finished.status
