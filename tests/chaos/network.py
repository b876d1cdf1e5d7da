"""A whole fedbus whose agents reach the broker, and whose clients reach the gateway, through proxies only."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from agents.cli.connection import Connection
from agents.cli.processes import supervisor
from agents.cli.system import AGENTS, System, agent_command
from bus.client import Bus
from bus.server import embedded_server
from tests.chaos.proxy import Proxy, proxy
from tests.chaos.system import HEARTBEAT_S, LEASE_S, Chaos
from tests.conftest import wait_for

JOIN_TOKEN = "a-token-of-the-test"


@dataclass(frozen=True)
class Network:
    """The system, with a bus of the test's own that nothing disturbs, and the two proxies."""

    chaos: Chaos
    broker: Proxy
    gateway: Proxy


@contextlib.asynccontextmanager
async def proxied(folder: Path) -> AsyncIterator[Network]:
    """Runs broker, agents and proxies until the block ends; clients are the caller's to start."""
    store, logs, url_file = folder / "store", folder / "logs", folder / "gateway.url"
    store.mkdir(parents=True)
    async with embedded_server(store / "nats") as server, proxy(server.url.removeprefix("nats://")) as broker:
        connection = Connection(
            nats_url=f"nats://{broker.address}", nats_token=server.token or "", join_token=JOIN_TOKEN
        )
        environment = connection.env() | {
            "FEDBUS_GATEWAY_PORT": "0",
            "FEDBUS_GATEWAY_URL_FILE": str(url_file),
            "FEDBUS_GATEWAY_SPOOL_DIR": str(store / "spool"),
            "FEDBUS_GATEWAY_LEASE_S": str(LEASE_S),
            "FEDBUS_GATEWAY_HEARTBEAT_S": str(HEARTBEAT_S),
            "FEDBUS_LABELLER_CACHE": str(store / "labels.sqlite"),
        }
        async with supervisor() as processes:
            for name in reversed(AGENTS):
                processes.start(agent_command(name, logs, environment))
            await wait_for(url_file.exists, within_s=60)
            async with (
                proxy(url_file.read_text().strip().removeprefix("http://")) as gateway,
                Bus.connect(server.settings, name="chaos", wait_s=20) as bus,
            ):
                connection = connection.model_copy(update={"gateway_url": f"http://{gateway.address}"})
                system = System(connection, processes, store, logs, environment)
                yield Network(Chaos(system, bus), broker, gateway)
                # First of all, so that no client waits for a gateway that its proxy has left.
                await processes.stop_all()
