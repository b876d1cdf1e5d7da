"""A whole fedbus on this machine: the embedded broker, the five agents and the clients that were asked for."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import sys
from collections import ChainMap
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from agents.cli.chromium import browser_client
from agents.cli.client_mix import ClientMix
from agents.cli.here import AGENTS
from agents.cli.processes import Command, Supervisor, supervisor
from agents.runtime.connection import Connection
from agents.runtime.settings import MetricsSettings, check_environment
from agents.runtime.tasks import background
from bus.broker.cluster import places, store_of
from bus.broker.permissions import new_passwords
from bus.broker.server import EmbeddedServer, Member, check_port_free, embedded_server
from bus.client import Bus
from bus.errors import FedbusError

GATEWAY_READY_S = 60.0
BROKER_PAUSE_S = 0.5
BROKER_READY_S = 20.0
log = logging.getLogger(__name__)


class GatewayNotReadyError(FedbusError):
    """The gateway did not say where it listens."""

    code = "gateway_not_ready"


@dataclass
class System:
    """A running fedbus and its processes.

    ``metrics_port`` is where the first of ``AGENTS`` serves its figures; the others have the next ports in their order.
    0 gives them free ones; without it no figures are served.
    """

    connection: Connection
    processes: Supervisor
    store: Path
    logs: Path
    environment: dict[str, str]
    metrics_port: int | None = None

    def agent(self, name: str) -> Command:
        """The command that runs one of the agents in a process of its own, logged in as itself."""
        argv = (sys.executable, "-P", "-m", f"agents.{name}")
        # A view and no copy: what is learned after its start counts when it is started again.
        environment = ChainMap(
            self.connection.env(name), {"FEDBUS_METRICS_PORT": self._port_of(name)}, self.environment
        )
        return Command(name, argv, self.logs / f"{name}.log", environment)

    def _port_of(self, name: str) -> str:
        if not self.metrics_port:
            # An empty one hides what this process inherited: five agents cannot share a port.
            return "" if self.metrics_port is None else "0"
        return str(self.metrics_port + AGENTS.index(name))

    def start_clients(self, mix: ClientMix, *, threads: int = 1) -> None:
        """Starts headless browsers and native clients that train for the gateway until the system stops."""
        for command in client_commands(mix, self.connection, store=self.store, logs=self.logs, threads=threads):
            self.processes.start(command)


def metrics_host() -> str:
    """The address on which agents that this process starts serve their figures."""
    return MetricsSettings().host


def client_commands(
    mix: ClientMix,
    connection: Connection,
    *,
    store: Path,
    logs: Path,
    threads: int = 1,
    prefix: str = "",
    engine: str = "",
    synthetic: bool = False,
) -> list[Command]:
    """The commands of the clients of ``mix``, named ``browser-1``, ``native-1`` and so on after ``prefix``.

    They train with the ``engine`` of this name, if one is given. Synthetic native clients train nothing and answer at
    once.
    """
    commands = []
    for index in range(1, mix.browser + 1):
        name = f"{prefix}browser-{index}"
        profile = (store / "browsers" / name).absolute()
        commands.append(
            browser_client(
                name,
                connection.gateway_url,
                connection.join_token,
                profile=profile,
                log_path=logs / f"{name}.log",
                threads=threads,
                engine=engine,
            )
        )
    for index in range(1, mix.native + 1):
        name = f"{prefix}native-{index}"
        argv = [sys.executable, "-P", "-m", "agents.client", "--gateway", connection.gateway_url, "--name", name]
        argv += ["--threads", str(threads), *(["--synthetic"] if synthetic else [])]
        argv += ["--engine", engine] if engine else []
        commands.append(Command(name, argv, logs / f"{name}.log", connection.env()))
    return commands


async def make_streams(connection: Connection, name: str, *, replicas: int | None = None) -> None:
    """Makes the streams, as only the operator may; agents wait for them.

    Args:
        replicas: how many brokers keep each, unless ``FEDBUS_REPLICAS`` says.

    Raises:
        BrokerUnavailableError: the broker that was just started does not answer.
    """
    settings = connection.settings()
    settings = settings.model_copy(update={"replicas": settings.replicas or replicas})
    async with Bus.connect(settings, name=name, wait_s=BROKER_READY_S):
        pass


@contextlib.asynccontextmanager
async def running_system(
    store: Path,
    logs: Path,
    *,
    nats_port: int | None,
    gateway_port: int,
    host: str = "127.0.0.1",
    agreed: Connection | None = None,
    metrics_port: int | None = None,
    cluster: int = 1,
) -> AsyncIterator[System]:
    """Runs the broker and the five agents, each as a process of its own, until the block ends.

    Args:
        store: the directory of everything that has to outlive a restart.
        logs: where each process writes its log.
        nats_port: port of the broker; none picks a free one.
        gateway_port: port of the gateway; 0 picks a free one.
        host: address that the gateway listens on.
        agreed: tokens that others know already; made anew without it.
        metrics_port: see ``System``.
        cluster: how many brokers; several keep every stream on each, the ports follow ``nats_port``.

    Raises:
        SettingsError: an environment variable has a value that one of the agents cannot use.
        StoreLockedError: another fedbus uses the store.
        PortTakenError: something listens on a port.
        ServerStartError: the broker cannot start.
        GatewayNotReadyError: the gateway did not start in time.
        ProcessFailedError: an agent keeps ending.
    """
    check_environment()
    if gateway_port:
        check_port_free(host, gateway_port, hint="choose another with --port, or 0 for a free one")
    if metrics_port:
        for index in range(len(AGENTS)):
            hint = "choose another --metrics-port: it and the next four are needed"
            check_port_free(metrics_host(), metrics_port + index, hint=hint)
    store.mkdir(parents=True, exist_ok=True)
    join_token = os.environ.get("FEDBUS_GATEWAY_JOIN_TOKEN") or (agreed and agreed.join_token)
    join_token = join_token or secrets.token_urlsafe(16)
    passwords = agreed.passwords if agreed and agreed.passwords else new_passwords()
    url_file = store / "gateway.url"
    url_file.unlink(missing_ok=True)
    async with _kept_brokers(store / "nats", nats_port, passwords, cluster) as nats_url:
        connection = Connection(nats_url=nats_url, passwords=passwords, join_token=join_token)
        await make_streams(connection, "up", replicas=cluster if cluster > 1 else None)
        environment = {
            "FEDBUS_GATEWAY_HOST": host,
            "FEDBUS_GATEWAY_PORT": str(gateway_port),
            "FEDBUS_GATEWAY_URL_FILE": str(url_file.absolute()),
            "FEDBUS_GATEWAY_SPOOL_DIR": str((store / "spool").absolute()),
        }
        async with supervisor() as processes:
            system = System(connection, processes, store, logs, environment, metrics_port)
            # The gateway first: clients wait for it.
            for name in reversed(AGENTS):
                processes.start(system.agent(name))
            url = await _gateway_url(url_file, logs)
            # Started again, it has to be where its clients look for it.
            environment["FEDBUS_GATEWAY_PORT"] = url.rsplit(":", 1)[1]
            system.connection = connection.model_copy(update={"gateway_url": url})
            yield system


@contextlib.asynccontextmanager
async def _kept_brokers(
    store: Path, port: int | None, passwords: Mapping[str, str], cluster: int
) -> AsyncIterator[str]:
    """Runs one broker or a cluster, starting again what ends by itself, and says where clients connect to."""
    async with contextlib.AsyncExitStack() as stack:
        urls = []
        for index, member in enumerate(places(cluster)):
            ready: asyncio.Future[EmbeddedServer] = asyncio.get_running_loop().create_future()
            here = None if port is None else port + index
            await stack.enter_async_context(
                background(keep_broker(store_of(store, member), here, passwords, ready, member))
            )
            urls.append((await ready).url)
        yield ",".join(urls)


async def keep_broker(
    store: Path,
    port: int | None,
    passwords: Mapping[str, str],
    ready: asyncio.Future[EmbeddedServer],
    member: Member | None,
) -> None:
    """Runs the broker and starts it again, on the same port, when it ends by itself."""
    while True:
        try:
            async with embedded_server(store, port=port, passwords=passwords, member=member) as server:
                port = server.port
                if not ready.done():
                    ready.set_result(server)
                code = await server.wait()
        except FedbusError as error:
            if ready.done():
                raise
            ready.set_exception(error)
            return
        log.warning("the broker ended with code %s and is started again", code)
        await asyncio.sleep(BROKER_PAUSE_S)


async def _gateway_url(url_file: Path, logs: Path) -> str:
    try:
        async with asyncio.timeout(GATEWAY_READY_S):
            # The file is how another process answers: there is no event in this one to wait for.
            while not url_file.exists():  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            return url_file.read_text().strip()
    except TimeoutError:
        raise GatewayNotReadyError(
            f"the gateway was not ready within {GATEWAY_READY_S:g} s", hint=f"see {logs / 'gateway.log'}"
        ) from None
