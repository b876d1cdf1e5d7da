"""The commands that run parts of fedbus and keep running: ``up``, ``broker``, ``agent`` and ``client``."""

from __future__ import annotations

import asyncio
import logging
import os
import runpy
import shlex
import signal
import tempfile
from collections.abc import Coroutine
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from agents.cli.connection import DEFAULT_STORE, Connection, agreed_connection, use_running_fedbus
from agents.cli.display import console
from agents.cli.options import ClientMix, parse_clients
from agents.cli.processes import supervisor
from agents.cli.reload import reload_on_change
from agents.cli.system import AGENTS, System, client_commands, make_streams, metrics_host, running_system
from agents.engines import choose
from agents.words.events import ROLES
from bus.broker.cluster import embedded_cluster, places
from bus.broker.settings import REPLICAS
from bus.process.logs import configure
from bus.words.payload import OPERATOR

Store = Annotated[Path, typer.Option("--store", help="Directory of the broker's data; survives restarts.")]
Threads = Annotated[int, typer.Option("--threads", min=1, max=64, help="Threads of each client.")]
NatsPort = Annotated[int, typer.Option("--nats-port", min=0, max=65_535, help="Port of the broker; 0: a free one.")]
MetricsPort = Annotated[
    int | None,
    typer.Option(
        "--metrics-port",
        envvar="FEDBUS_METRICS_PORT",
        min=0,
        max=65_535 - len(AGENTS) + 1,
        help="First of the five ports on which the agents serve /metrics; 0: free ones. Default: none.",
    ),
]
Cluster = Annotated[int, typer.Option("--cluster", help="Brokers that are one and keep everything on each: 1, 3 or 5.")]
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
    configure("up")
    system = running_system(
        store,
        store / "logs",
        nats_port=nats_port or None,
        gateway_port=port,
        host=host,
        agreed=agreed_connection(store),
        metrics_port=metrics_port,
        cluster=_size(cluster),
    )
    asyncio.run(until_interrupted(_up(system, mix, threads, reload)))


def _size(cluster: int) -> int:
    if cluster not in REPLICAS:
        raise typer.BadParameter("--cluster is 1, 3 or 5")
    return cluster


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
        console.print("Start a run in another terminal: fedbus run start --go    Stop with Ctrl-C.")
        system.start_clients(mix, threads=threads)
        if reload:
            await reload_on_change(system)
        await asyncio.Event().wait()


def broker(
    store: Store = DEFAULT_STORE,
    port: NatsPort = 4222,
    cluster: Cluster = 1,
) -> None:
    """Run the embedded nats-server alone, for agents that are started one by one."""
    configure("broker")
    asyncio.run(until_interrupted(_broker(store, port or None, _size(cluster))))


async def _broker(store: Path, port: int | None, cluster: int) -> None:
    agreed = agreed_connection(store)
    async with embedded_cluster(store / "nats", places(cluster), port=port, passwords=agreed.passwords) as servers:
        agreed = agreed.model_copy(update={"nats_url": servers.url})
        agreed.write(store)
        await make_streams(agreed, "broker", replicas=servers.replicas)
        console.print(f"NATS on {servers.url}; fedbus commands in this folder find it by themselves.", soft_wrap=True)
        console.print('For programs of your own: eval "$(fedbus env)"')
        code = await servers.wait()
        log.error("the broker ended with code %s", code)
        raise typer.Exit(1)


def agent(
    name: Annotated[str, typer.Argument(help=f"One of {', '.join(AGENTS)}.")],
) -> None:
    """Run one agent in this terminal; it waits for the broker and stops on Ctrl-C."""
    if name not in AGENTS:
        raise typer.BadParameter(f"{name!r} is not one of {', '.join(AGENTS)}")
    use_running_fedbus(role=name, agree=True)
    runpy.run_module(f"agents.{name}", run_name="__main__", alter_sys=True)


def env(
    role: Annotated[str, typer.Argument(help=f"As whom: {', '.join(ROLES)}.")] = OPERATOR,
    store: Store = DEFAULT_STORE,
) -> None:
    """Print how programs of your own reach the fedbus of this folder: eval "$(fedbus env)"."""
    if role not in ROLES:
        raise typer.BadParameter(f"{role!r} is not one of {', '.join(ROLES)}")
    for name, value in agreed_connection(store).env(role).items():
        typer.echo(f"export {name}={shlex.quote(value)}")


def client(
    native: Annotated[int, typer.Option("--native", min=0, max=256, help="Native clients to run.")] = 0,
    browser: Annotated[int, typer.Option("--browser", min=0, max=64, help="Headless Chromium clients to run.")] = 0,
    gateway: Annotated[str, typer.Option("--gateway", envvar="FEDBUS_GATEWAY_URL", help="URL of the gateway.")] = "",
    token: Annotated[str, typer.Option("--token", envvar="FEDBUS_GATEWAY_JOIN_TOKEN", help="Join token.")] = "",
    threads: Threads = 1,
    engine: Annotated[
        str, typer.Option("--engine", help="Engine to train with; default: the best that can be used.")
    ] = "",
) -> None:
    """Run clients that train for a gateway until Ctrl-C."""
    if not native and not browser:
        raise typer.BadParameter("say how many: --native N or --browser N")
    if native and engine:
        choose(engine)
    use_running_fedbus(agree=True)
    url = gateway or os.environ.get("FEDBUS_GATEWAY_URL", "http://127.0.0.1:8700")
    join = token or os.environ.get("FEDBUS_GATEWAY_JOIN_TOKEN", "")
    configure("client")
    connection = Connection(nats_url="nats://unused", gateway_url=url.rstrip("/"), join_token=join)
    asyncio.run(until_interrupted(_clients(ClientMix(browser, native), connection, threads, engine)))


async def _clients(mix: ClientMix, connection: Connection, threads: int, engine: str) -> None:
    with tempfile.TemporaryDirectory(prefix="fedbus-client-", ignore_cleanup_errors=True) as folder:
        store = Path(folder)
        prefix = f"{os.uname().nodename.split('.')[0][:20]}-{os.getpid()}-"
        commands = client_commands(
            mix, connection, store=store, logs=store, threads=threads, prefix=prefix, engine=engine
        )
        async with supervisor() as processes:
            for command in commands:
                processes.start(command)
            console.print(f"{mix} training for {connection.gateway_url}; logs in {store}. Stop with Ctrl-C.")
            await asyncio.Event().wait()


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
