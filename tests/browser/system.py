"""A whole fedbus in the test's process: a broker of its own, all agents, and gateways that come and go."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.request import Request, urlopen

from agents.aggregator import service as aggregator
from agents.cli.run_setup import RunSources, start_run
from agents.dispatcher import service as dispatcher
from agents.evaluator import service as evaluator
from agents.gateway.service import running_gateway
from agents.gateway.settings import GatewaySettings
from agents.labeller import service as labeller
from agents.runtime.shipped import DEFAULT_ARTIFACTS
from agents.words.events import RoundStarted
from agents.words.run_config import QuorumSpec, RunConfig
from bus.broker.server import EmbeddedServer, embedded_server
from bus.client import Bus, CaughtUp
from bus.words.payload import Payload
from bus.words.subjects import events_of
from tests.builders import config as run_config

AGENTS = {
    "labeller": labeller.serve,
    "dispatcher": dispatcher.serve,
    "aggregator": aggregator.serve,
    "evaluator": evaluator.serve,
}
TOKEN = "join"
DEADLINE_S = 150.0


@dataclass
class System:
    """What tests need of it."""

    server: EmbeddedServer
    bus: Bus
    folder: Path
    page: Path

    @contextlib.asynccontextmanager
    async def gateway(self, **settings: object) -> AsyncIterator[str]:
        """A gateway that serves the page; yields its URL."""
        usual = {"port": 0, "static_dir": self.page, "spool_dir": self.folder / "spool", "join_token": TOKEN}
        chosen = GatewaySettings.model_validate({**usual, "heartbeat_s": 1.0, **settings})
        async with (
            Bus.connect(self.server.settings, name="gateway", wait_s=10) as bus,
            running_gateway(bus, chosen) as url,
        ):
            try:
                yield url
            except Exception as error:
                error.add_note(f"the gateway's figures: {await asyncio.to_thread(_figures, url)}")
                raise

    async def start(
        self, run: str, *, users: int, rounds: int = 1, images: int = 20, artifacts: Path = DEFAULT_ARTIFACTS
    ) -> RunConfig:
        """Starts a run of the shipped task and its first round."""
        quorum = QuorumSpec(deadline_s=DEADLINE_S)
        config = run_config(rounds=rounds, users=users).model_copy(update={"images_per_user": images, "quorum": quorum})
        await start_run(self.bus, run, config, RunSources(artifacts))
        await self.bus.publish(RoundStarted(run=run, round=1))
        return config

    async def events_until(self, run: str, last: type[Payload], *, count: int = 1) -> list[Payload]:
        """The run's events up to the ``count``-th of this type.

        Raises:
            TimeoutError: it did not come within ``DEADLINE_S``; a note tells what did.
        """
        events: list[Payload] = []
        heard_at = time.monotonic()
        try:
            async with asyncio.timeout(DEADLINE_S), self.bus.follow(events_of(run)) as items:
                async for item in items:
                    if isinstance(item, CaughtUp):
                        continue
                    events.append(item.event.data)
                    heard_at = time.monotonic()
                    if sum(isinstance(event, last) for event in events) == count:
                        break
        except TimeoutError as error:
            error.add_note(f"heard of {run}, last {time.monotonic() - heard_at:.1f} s ago: {_counted(events)}")
            raise
        return events


def _counted(events: Sequence[Payload]) -> str:
    """How many events of each type, and of which client where one is named."""
    kinds = Counter(" ".join((type(event).__name__, getattr(event, "client", ""))).strip() for event in events)
    return ", ".join(f"{count} {kind}" for kind, count in kinds.items()) or "nothing"


def _figures(url: str) -> str:
    """What the gateway says of itself in ``/metrics``, without what all agents say."""
    try:
        with urlopen(Request(f"{url}/metrics", headers={"Authorization": f"Bearer {TOKEN}"}), timeout=5) as answer:
            lines = answer.read().decode().splitlines()
    except OSError as error:
        return str(error)
    return ", ".join(line.removeprefix("fedbus_gateway_") for line in lines if line.startswith("fedbus_gateway_"))


@contextlib.asynccontextmanager
async def whole_system(folder: Path, page: Path) -> AsyncIterator[System]:
    """Broker and agents until the block ends."""
    stop = asyncio.Event()
    async with (
        embedded_server(folder / "nats") as server,
        Bus.connect(server.settings, name="test", wait_s=10) as bus,
        asyncio.TaskGroup() as group,
    ):

        async def one(name: str) -> None:
            async with Bus.connect(server.settings, name=name, wait_s=10) as own:
                await AGENTS[name](own, stop)

        for name in AGENTS:
            group.create_task(one(name))
        try:
            yield System(server, bus, folder, page)
        finally:
            stop.set()
