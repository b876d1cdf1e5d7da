"""The commands that run the broker, alone or with everything else, and keep running: ``broker`` and ``up``."""

from __future__ import annotations

import asyncio
import logging
import shlex
import signal
from collections.abc import Coroutine
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from agents.cli.client_mix import ClientMix, Threads, parse_clients
from agents.cli.console import console
from agents.cli.here import AGENTS, Store
from agents.cli.reload import reload_on_change
from agents.cli.system import System, make_streams, metrics_host, running_system
from agents.labeller.settings import LabellerSettings
from agents.runtime.connection import DEFAULT_STORE, agreed_connection
from agents.runtime.settings import MetricsSettings, variable
from bus.broker.cluster import embedded_cluster, places
from bus.broker.settings import REPLICAS
from bus.process.logs import configure

NatsPort = Annotated[int, typer.Option("--nats-port", min=0, max=65_535, help="Port of the broker; 0: a free one.")]
MetricsPort = Annotated[
    int | None,
    typer.Option(
        "--metrics-port",
        envvar=variable(MetricsSettings, "port"),
        min=0,
        max=65_535 - len(AGENTS) + 1,
        help="First of the five ports on which the agents serve /metrics; 0: free ones. Default: none.",
    ),
]


def _checked_size(cluster: int) -> int:
    if cluster not in REPLICAS:
        raise typer.BadParameter("--cluster is 1, 3 or 5")
    return cluster


Cluster = Annotated[
    int,
    typer.Option(
        "--cluster", callback=_checked_size, help="Brokers that are one and keep everything on each: 1, 3 or 5."
    ),
]
T = TypeVar("T")
log = logging.getLogger(__name__)


def up(
    store: Store = DEFAULT_STORE,
    port: Annotated[int, typer.Option("--port", min=0, max=65_535, help="Port of the page; 0: a free one.")] = 8700,
    host: Annotated[str, typer.Option("--host", help="Address that the page is served on.")] = "127.0.0.1",
    nats_port: NatsPort = 4222,
    clients: Annotated[str, typer.Option("--clients", help="Clients to start too: browser:2, native:2 …")] = "none",
    threads: Threads = 1,
    metrics_port: MetricsPort = None,
    cluster: Cluster = 1,
    reload: Annotated[bool, typer.Option("--reload", help="Restart what changed when a source file is saved.")] = False,
) -> None:
    """Run everything (broker, agents, page) and keep serving until Ctrl-C."""
    mix = parse_clients(clients)
    if (labelling := LabellerSettings()).openai_api_key is not None:
        labelling.api_key()
    configure("up")
    system = running_system(
        store,
        store / "logs",
        nats_port=nats_port or None,
        gateway_port=port,
        host=host,
        agreed=agreed_connection(store),
        metrics_port=metrics_port,
        cluster=cluster,
    )
    asyncio.run(until_interrupted(_up(system, mix, threads, reload)))


async def _up(running: AbstractAsyncContextManager[System], mix: ClientMix, threads: int, reload: bool) -> None:
    async with running as system:
        system.connection.write(system.store)
        metrics_port = system.metrics_port
        console.print(f"page    {system.connection.gateway_url}/#token={system.connection.join_token}", soft_wrap=True)
        console.print(f"broker  {system.connection.nats_url}   logs  {system.logs}", soft_wrap=True)
        if metrics_port is not None:
            ports = ", ".join(f"{name} {metrics_port + index}" for index, name in enumerate(AGENTS))
            said = ports if metrics_port else "free ports, see the logs"
            console.print(f"figures on /metrics of {metrics_host()}: {said}", soft_wrap=True)
        console.print(
            f"Start a run in another terminal: {_starts_a_run(system.store)}    Stop with Ctrl-C.", soft_wrap=True
        )
        system.start_clients(mix, threads=threads)
        if reload:
            await reload_on_change(system)
        await asyncio.Event().wait()


def _starts_a_run(store: Path) -> str:
    """The command for a terminal in this folder, where commands find the usual store by themselves."""
    option = _of(store)
    return f'eval "$(fedbus env{option})" && fedbus run start --go' if option else "fedbus run start --go"


def _of(store: Path) -> str:
    """The option that names a store to other commands; nothing for the one where they look themselves."""
    usual = store.absolute() == DEFAULT_STORE.absolute()
    return "" if usual else f" --store {shlex.quote(str(store))}"


def broker(
    store: Store = DEFAULT_STORE,
    port: NatsPort = 4222,
    cluster: Cluster = 1,
) -> None:
    """Run the embedded nats-server alone, for agents that are started one by one."""
    configure("broker")
    asyncio.run(until_interrupted(_broker(store, port or None, cluster)))


async def _broker(store: Path, port: int | None, cluster: int) -> None:
    agreed = agreed_connection(store)
    async with embedded_cluster(store / "nats", places(cluster), port=port, passwords=agreed.passwords) as servers:
        agreed = agreed.model_copy(update={"nats_url": servers.url})
        agreed.write(store)
        await make_streams(agreed, "broker", replicas=servers.replicas)
        option = _of(store)
        found = "; fedbus commands in this folder find it by themselves." if not option else ""
        console.print(f"NATS on {servers.url}{found}", soft_wrap=True)
        who = "programs of your own" if not option else "fedbus commands and programs of your own"
        console.print(f'For {who}: eval "$(fedbus env{option})"', soft_wrap=True)
        code = await servers.wait()
        log.error("the broker ended with code %s", code)
        raise typer.Exit(1)


async def until_interrupted(work: Coroutine[Any, Any, T]) -> T | None:
    """Runs ``work`` to its result, or answers with nothing once SIGINT or SIGTERM has cancelled it."""
    loop, running = asyncio.get_running_loop(), asyncio.create_task(work)
    interrupted = False

    def interrupt() -> None:
        nonlocal interrupted
        interrupted = True
        running.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupt)
    try:
        return await running
    except asyncio.CancelledError:
        if not interrupted:
            raise
        return None
