"""A TCP proxy on loopback that makes a network bad: late, narrow, cut, reset, or silent without a word."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass

BLOCK = 1 << 14
CLOSE_S = 1.0
_RESET = struct.pack("ii", 1, 0)


@dataclass
class Weather:
    """What happens to every byte from now on.

    Attributes:
        latency_s: how long each block is under way.
        jitter_s: by how much more at most, drawn from the proxy's seed; blocks of one direction keep their order.
        bytes_per_s: how much passes in each direction of a connection; none is as much as there is.
    """

    latency_s: float = 0.0
    jitter_s: float = 0.0
    bytes_per_s: float | None = None


class _Link:
    """One client's connection and its counterpart at the server."""

    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self.client = client
        self.server = server
        self.upstream = 0
        self.frozen = False
        self.over = asyncio.Event()

    def end(self, *, reset: bool) -> None:
        """Ends both sides: in order, or with a reset that drops what is under way."""
        self.over.set()
        for writer in (self.client, self.server):
            if not reset:
                writer.close()
            elif not writer.is_closing():
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                writer.transport.abort()

    async def close(self) -> None:
        """Closes both sides in order, but waits for neither for long."""
        for writer in (self.client, self.server):
            writer.close()
            try:
                async with asyncio.timeout(CLOSE_S):
                    await writer.wait_closed()
            except TimeoutError:
                writer.transport.abort()
            except OSError:
                # It was reset: gone is gone.
                pass


class Proxy:
    """Listens on ``port`` and passes on to a target; ``weather`` may change any time.

    While it is ``refusing`` nobody gets in, and ``refused`` counts those who tried.
    """

    def __init__(self, target: tuple[str, int], seed: int) -> None:
        self.weather = Weather()
        self.refusing = False
        self.refused = 0
        self._cut_at: int | None = None
        self._cut_resets = False
        self._links: list[_Link] = []
        self.port = 0
        self._target = target
        self._random = random.Random(seed)
        self._open: set[_Link] = set()

    @property
    def address(self) -> str:
        """Where to connect to, without a scheme."""
        return f"127.0.0.1:{self.port}"

    @property
    def upstream(self) -> list[int]:
        """Bytes that each connection, in the order of their beginning, sent to the server."""
        return [link.upstream for link in self._links]

    def cut(self, *, reset: bool = False) -> int:
        """Ends all open connections and says how many there were; new ones are taken as before."""
        ended = list(self._open)
        for link in ended:
            link.end(reset=reset)
        return len(ended)

    def cut_at(self, upstream: int, *, reset: bool = False) -> None:
        """Ends, once, the first connection that sent so many bytes to the server; what it sent after them is lost."""
        self._cut_at, self._cut_resets = upstream, reset

    def freeze(self) -> int:
        """Leaves all open connections half open, and says how many: nothing arrives there any more, not even an end."""
        for link in self._open:
            link.frozen = True
        return len(self._open)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection from its beginning to its end."""
        if self.refusing:
            self.refused += 1
            writer.transport.abort()
            return
        try:
            from_server, to_server = await asyncio.open_connection(*self._target)
        except OSError:
            writer.close()
            return
        link = _Link(writer, to_server)
        self._links.append(link)
        self._open.add(link)
        try:
            async with asyncio.TaskGroup() as group:
                ways = [
                    group.create_task(self._pass(link, reader, to_server)),
                    group.create_task(self._pass(link, from_server, writer)),
                ]
                # Neither protocol here closes only half of a connection.
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                for way in ways:
                    way.cancel()
        finally:
            self._open.discard(link)
            await link.close()

    async def _pass(self, link: _Link, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        """Moves blocks one way; what is late delays what follows, but many blocks may be under way at once."""
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(64)
        async with asyncio.TaskGroup() as group:
            receiving = group.create_task(self._receive(source, under_way))
            with contextlib.suppress(OSError):
                await self._deliver(link, under_way, sink)
            receiving.cancel()

    async def _receive(self, source: asyncio.StreamReader, under_way: asyncio.Queue[tuple[float, bytes]]) -> None:
        clock = asyncio.get_running_loop()
        block = b"-"
        while block:
            try:
                block = await source.read(BLOCK)
            except OSError:
                block = b""
            delay = self.weather.latency_s + self._random.uniform(0, self.weather.jitter_s)
            await under_way.put((clock.time() + delay, block))

    async def _deliver(
        self, link: _Link, under_way: asyncio.Queue[tuple[float, bytes]], sink: asyncio.StreamWriter
    ) -> None:
        clock = asyncio.get_running_loop()
        while True:
            due, block = await under_way.get()
            if self.weather.bytes_per_s is not None:
                due = max(due, clock.time()) + len(block) / self.weather.bytes_per_s
            await asyncio.sleep(max(0.0, due - clock.time()))
            if link.frozen:
                await link.over.wait()
            if not block:
                return
            if sink is link.server:
                block = self._until_the_cut(link, block)
                link.upstream += len(block)
            sink.write(block)
            await sink.drain()
            if self._cut_at is not None and link.upstream >= self._cut_at:
                self._cut_at = None
                link.end(reset=self._cut_resets)
                return

    def _until_the_cut(self, link: _Link, block: bytes) -> bytes:
        return block if self._cut_at is None else block[: max(0, self._cut_at - link.upstream)]


@contextlib.asynccontextmanager
async def proxy(target: str, *, seed: int = 0) -> AsyncIterator[Proxy]:
    """A proxy in front of ``host:port``, until the block ends."""
    host, _, port = target.rpartition(":")
    one = Proxy((host, int(port)), seed)
    async with asyncio.TaskGroup() as group:

        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            group.create_task(one.serve(reader, writer))

        async with await asyncio.start_server(connected, "127.0.0.1", 0) as server:
            one.port = server.sockets[0].getsockname()[1]
            try:
                yield one
            finally:
                server.close()
                one.cut(reset=True)
