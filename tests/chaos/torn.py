"""Three brokers that are one, started again when they die, which a test can kill and cut off from each other."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from agents.cli.system import keep_broker
from agents.runtime.tasks import background
from bus.broker.cluster import EmbeddedCluster, places, store_of
from bus.broker.permissions import new_passwords
from bus.broker.server import EmbeddedServer
from bus.client import Bus
from tests.chaos.proxy import Proxy, proxy
from tests.conftest import wait_for

NOWHERE = "127.0.0.1:9"
LEADER_S = 30.0


@dataclass(frozen=True)
class Torn:
    """A cluster whose brokers reach each other through proxies, by the names of both ends."""

    cluster: EmbeddedCluster
    lines: Mapping[tuple[str, str], Proxy]
    brokers: Mapping[str, EmbeddedServer]

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

    async def kill(self, name: str) -> None:
        """Kills a broker and waits for the next one in its place."""
        before = await wait_for(lambda: self._pid(name))
        os.kill(before, signal.SIGKILL)
        await wait_for(lambda: self._pid(name) not in (0, before), within_s=30)

    def _pid(self, name: str) -> int:
        """Of the broker that listens now: it stands in the name of the file that tells its ports."""
        return next((int(one.stem.split("_")[1]) for one in self.brokers[name].store.glob("*.ports")), 0)

    @contextlib.asynccontextmanager
    async def connected(self, name: str) -> AsyncIterator[Bus]:
        """A bus that talks to this broker alone."""
        settings = self.cluster.settings_for().model_copy(update={"url": self.brokers[name].url})
        async with Bus.connect(settings, name="test", wait_s=20) as bus:
            yield bus


@contextlib.asynccontextmanager
async def torn_cluster(folder: Path) -> AsyncIterator[Torn]:
    """Brokers that reach each other through proxies only, with a login for each role."""
    members = [one for one in places(3) if one is not None]
    passwords = new_passwords()
    brokers: dict[str, EmbeddedServer] = {}
    async with contextlib.AsyncExitStack() as stack:
        lines = {
            (here.name, there.name): await stack.enter_async_context(proxy(f"127.0.0.1:{there.port}"))
            for here in members
            for there in members
            if here is not there
        }
        for one in members:
            routes = tuple(line.address for ends, line in lines.items() if ends[0] == one.name)
            # What a broker hears of another from a third would lead it past the proxies.
            apart = replace(one, routes=routes, advertise=NOWHERE)
            ready: asyncio.Future[EmbeddedServer] = asyncio.get_running_loop().create_future()
            keeping = keep_broker(store_of(folder / "nats", apart), None, passwords, ready, apart)
            await stack.enter_async_context(background(keeping))
            brokers[one.name] = await ready
        yield Torn(EmbeddedCluster(list(brokers.values())), lines, brokers)


async def leader_of(bus: Bus, stream: str) -> str:
    """The name of the broker that leads a stream."""

    async def led() -> str | None:
        info = await bus.connection.persist(lambda: bus.connection.js.stream_info(stream))
        return info.cluster.leader if info.cluster else None

    found = await wait_for(led, within_s=LEADER_S)
    assert found is not None
    return found
