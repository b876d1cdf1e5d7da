"""Several embedded brokers on this machine that are one: each stream lies on some of them, and one may be lost."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import secrets
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bus.broker.server import EmbeddedServer, Member, embedded_server
from bus.broker.settings import BusSettings
from bus.words.payload import OPERATOR

ROUTE_PORTS = range(20_000, 32_768)


@dataclass(frozen=True)
class EmbeddedCluster:
    """Running brokers that know each other."""

    servers: Sequence[EmbeddedServer]

    @property
    def url(self) -> str:
        """Where clients connect to: every broker, separated by commas."""
        return ",".join(one.url for one in self.servers)

    def settings_for(self, role: str = OPERATOR) -> BusSettings:
        """What a client of this role needs to connect; streams lie on every broker."""
        one = self.servers[0].settings_for(role)
        return one.model_copy(update={"url": self.url, "replicas": self.replicas})

    @property
    def replicas(self) -> int | None:
        """On how many brokers each stream shall lie; of one alone nothing is asked."""
        return len(self.servers) if len(self.servers) > 1 else None

    async def wait(self) -> int:
        """Waits until a broker has ended and returns its exit code."""
        waiting = [asyncio.create_task(one.wait()) for one in self.servers]
        try:
            ended, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in waiting:
                one.cancel()
        return ended.pop().result()


def places(size: int, host: str = "127.0.0.1") -> list[Member | None]:
    """The places of ``size`` brokers that find each other on free ports of this machine; one alone has none."""
    if size == 1:
        return [None]
    secret = secrets.token_urlsafe(24)
    ports = _free_ports(size, host)
    return [
        Member(f"fedbus-{index}", port, tuple(f"{host}:{other}" for other in ports if other != port), secret)
        for index, port in enumerate(ports, 1)
    ]


def store_of(store: Path, member: Member | None) -> Path:
    """Where a member of a cluster keeps its data: beside that of a broker of its own, and never in it.

    A broker that joins a cluster deletes the streams that the cluster does not know.
    """
    return store if member is None else store.with_name(f"{store.name}-{member.name}")


@contextlib.asynccontextmanager
async def embedded_cluster(
    store: Path,
    brokers: Sequence[Member | None],
    *,
    port: int | None = None,
    passwords: Mapping[str, str] | None = None,
) -> AsyncIterator[EmbeddedCluster]:
    """Runs a broker in each of these ``places`` until the ``async with`` ends.

    The first listens on ``port``, the others on those that follow.

    Raises:
        StoreLockedError, PortTakenError, ServerStartError: as ``embedded_server``.
    """
    async with contextlib.AsyncExitStack() as stack:
        token = None if len(brokers) == 1 else secrets.token_urlsafe(24)
        servers = [
            await stack.enter_async_context(
                embedded_server(
                    store_of(store, member),
                    port=None if port is None else port + index,
                    token=token,
                    passwords=passwords,
                    member=member,
                )
            )
            for index, member in enumerate(brokers)
        ]
        yield EmbeddedCluster(servers)


def _free_ports(count: int, host: str) -> list[int]:
    """Ports that the system gives to no outgoing connection, which could take one before its broker listens."""
    found: list[int] = []
    with contextlib.ExitStack() as stack:
        while len(found) < count:
            port = secrets.choice(ROUTE_PORTS)
            try:
                stack.enter_context(socket.create_server((host, port)))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
            else:
                found.append(port)
    return found
