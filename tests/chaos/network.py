"""The five agents on a broker of the test's own, near or behind a proxy."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from agents.cli.here import AGENTS
from agents.cli.processes import supervisor
from agents.cli.system import System
from agents.runtime.connection import Connection
from bus.broker.permissions import new_passwords
from bus.broker.server import embedded_server
from bus.broker.settings import BusSettings
from bus.client import Bus
from tests.chaos.proxy import Proxy, proxy
from tests.chaos.system import HEARTBEAT_S, LEASE_S, Chaos
from tests.conftest import wait_for

READY_S = 60.0


@contextlib.asynccontextmanager
async def agents_on(
    nats_url: str, folder: Path, *, bus: BusSettings, passwords: Mapping[str, str], **variables: str
) -> AsyncIterator[Chaos]:
    """Runs the agents on the broker at ``nats_url``; the test's own bus goes where ``bus`` says."""
    logs, url_file = folder / "logs", folder / "gateway.url"
    connection = Connection(nats_url=nats_url, passwords=dict(passwords), join_token="a-token-of-the-test")
    environment = {
        "FEDBUS_GATEWAY_PORT": "0",
        "FEDBUS_GATEWAY_URL_FILE": str(url_file),
        "FEDBUS_GATEWAY_SPOOL_DIR": str(folder / "spool"),
        "FEDBUS_GATEWAY_LEASE_S": str(LEASE_S),
        "FEDBUS_GATEWAY_HEARTBEAT_S": str(HEARTBEAT_S),
        **variables,
    }
    async with supervisor() as processes, Bus.connect(bus, name="chaos", wait_s=20) as connected:
        system = System(connection, processes, folder, logs, environment)
        for name in reversed(AGENTS):
            processes.start(system.agent(name))
        await wait_for(url_file.exists, within_s=READY_S)
        system.connection = connection.model_copy(update={"gateway_url": url_file.read_text().strip()})
        yield Chaos(system, connected)


@dataclass(frozen=True)
class Network:
    """A system whose own bus nothing disturbs, and what lies before its broker and its gateway."""

    chaos: Chaos
    broker: Proxy
    gateway: Proxy


@contextlib.asynccontextmanager
async def proxied(folder: Path) -> AsyncIterator[Network]:
    """Agents reach the broker, and clients, which are the caller's to start, the gateway through proxies only."""
    async with (
        embedded_server(folder / "nats", passwords=new_passwords()) as server,
        proxy(server.url.removeprefix("nats://")) as broker,
        agents_on(f"nats://{broker.address}", folder, bus=server.settings, passwords=server.passwords) as chaos,
        proxy(chaos.system.connection.gateway_url.removeprefix("http://")) as gateway,
    ):
        far = chaos.system.connection.model_copy(update={"gateway_url": f"http://{gateway.address}"})
        chaos.system.connection = far
        yield Network(chaos, broker, gateway)
        # Clients go before their gateway does.
        await chaos.system.processes.stop_all()
