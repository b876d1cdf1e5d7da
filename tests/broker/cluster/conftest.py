"""Three brokers that are one, and three that a test can cut off from each other."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import pytest_asyncio

from bus.broker.cluster import EmbeddedCluster, embedded_cluster, places
from bus.broker.server import EmbeddedServer
from bus.broker.settings import BusSettings
from bus.client import Bus
from tests.chaos.proxy import Proxy, proxy
from tests.conftest import wait_for

NOWHERE = "127.0.0.1:9"


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EmbeddedCluster]:
    """A cluster for all tests that leave it as it is."""
    async with embedded_cluster(tmp_path_factory.mktemp("cluster") / "nats", places(3)) as servers:
        yield servers


@pytest_asyncio.fixture
async def clustered(cluster: EmbeddedCluster) -> AsyncIterator[Bus]:
    """A bus on the cluster; it is shared, so use a run of your own."""
    async with Bus.connect(cluster.settings_for(), name="test", wait_s=20) as connected:
        yield connected


@dataclass(frozen=True)
class Torn:
    """A cluster whose brokers reach each other through proxies, by the names of both ends."""

    cluster: EmbeddedCluster
    lines: Mapping[tuple[str, str], Proxy]

    def settings_of(self, server: EmbeddedServer) -> BusSettings:
        """How to reach this broker and no other."""
        return self.cluster.settings_for().model_copy(update={"url": server.url})

    def named(self, name: str) -> EmbeddedServer:
        """The broker of this name."""
        return next(one for one in self.cluster.servers if one.store.name.endswith(name))

    def cut_off(self, name: str) -> None:
        """Nothing comes to this broker from the others any more, or from it to them."""
        for ends, line in self.lines.items():
            if name in ends:
                line.refusing = True
                line.cut(reset=True)

    def heal(self) -> None:
        """Every broker may reach every other."""
        for line in self.lines.values():
            line.refusing = False

    @contextlib.asynccontextmanager
    async def connected(self, name: str) -> AsyncIterator[Bus]:
        """A bus that talks to this broker alone."""
        async with Bus.connect(self.settings_of(self.named(name)), name="test", wait_s=20) as bus:
            yield bus


@contextlib.asynccontextmanager
async def torn_cluster(folder: Path, *, passwords: Mapping[str, str] | None = None) -> AsyncIterator[Torn]:
    """Brokers that reach each other through proxies only."""
    members = [one for one in places(3) if one is not None]
    async with contextlib.AsyncExitStack() as stack:
        lines = {}
        for here in members:
            for there in members:
                if here is not there:
                    line = await stack.enter_async_context(proxy(f"127.0.0.1:{there.port}"))
                    lines[here.name, there.name] = line
        # What a broker hears of another from a third would lead it past the proxies.
        apart = [
            replace(
                one,
                routes=tuple(line.address for ends, line in lines.items() if ends[0] == one.name),
                advertise=NOWHERE,
            )
            for one in members
        ]
        yield Torn(
            await stack.enter_async_context(embedded_cluster(folder / "nats", apart, passwords=passwords)), lines
        )


async def leader_of(bus: Bus, stream: str) -> str:
    """The name of the broker that leads a stream."""

    async def led() -> str | None:
        info = await bus.connection.persist(lambda: bus.connection.js.stream_info(stream))
        return info.cluster.leader if info.cluster else None

    return await wait_for(led, within_s=20)


@pytest_asyncio.fixture
async def torn(tmp_path: Path) -> AsyncIterator[Torn]:
    """A cluster of the test's own that it may tear."""
    async with torn_cluster(tmp_path) as found:
        yield found
