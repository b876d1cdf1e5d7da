"""A TCP proxy that is a bad network: slow, uneven, narrow, and cut, reset or silent whenever a test says so."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

_BLOCK = 1 << 16


@dataclass
class Weather:
    """How bad it is, in each direction; may be changed while connections are open.

    Attributes:
        latency_s: delay of each block.
        jitter_s: up to so much more, at random.
        bytes_per_s: width of each connection; none is unlimited.
    """

    latency_s: float = 0.0
    jitter_s: float = 0.0
    bytes_per_s: float | None = None


@dataclass
class Proxy:
    """Connections from ``url_port`` to the target; ``cuts`` counts what the proxy ended."""

    host: str
    port: int
    weather: Weather
    _random: random.Random
    _open: set[Link] = field(default_factory=set)
    _flowing: asyncio.Event = field(default_factory=asyncio.Event)
    _quota: int | None = None
    cuts: int = 0

    def cut(self) -> None:
        """Ends every connection in good order, as a proxy that restarts does."""
        self._end_all(reset=False)

    def reset(self) -> None:
        """Ends every connection with RST."""
        self._end_all(reset=True)

    def cut_after(self, received: int) -> None:
        """Ends the connection over which so many more bytes have come from the side that connects."""
        self._quota = received

    def freeze(self) -> None:
        """Half open: connections stay and new ones are taken, but nothing comes through."""
        self._flowing.clear()

    def thaw(self) -> None:
        """What was sent meanwhile arrives now."""
        self._flowing.set()

    def _end_all(self, *, reset: bool) -> None:
        for link in list(self._open):
            link.end(reset=reset)
            self.cuts += 1

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, target: tuple[str, int]) -> None:
        try:
            there, back = await asyncio.open_connection(*target)
        except OSError:
            writer.transport.abort()
            return
        link = Link(writer, back)
        self._open.add(link)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(reader, back, link, counted=True))
                group.create_task(self._pump(there, writer, link, counted=False))
        except* OSError:
            pass
        finally:
            self._open.discard(link)
            link.end(reset=False)

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, link: Link, *, counted: bool
    ) -> None:
        while block := await reader.read(_BLOCK):
            weather = self.weather
            wait_s = weather.latency_s + self._random.random() * weather.jitter_s
            if weather.bytes_per_s is not None:
                wait_s += len(block) / weather.bytes_per_s
            if wait_s:
                await asyncio.sleep(wait_s)
            await self._flowing.wait()
            if counted and self._quota is not None:
                block, self._quota = block[: self._quota], self._quota - len(block)
                if self._quota <= 0:
                    self._quota = None
                    writer.write(block)
                    await writer.drain()
                    self.cuts += 1
                    link.end(reset=False)
                    return
            writer.write(block)
            await writer.drain()
        link.end(reset=False)


class Link:
    """One connection through the proxy: both of its sides."""

    def __init__(self, *writers: asyncio.StreamWriter) -> None:
        self._writers = writers

    def end(self, *, reset: bool) -> None:
        """Closes both sides; what is on its way is lost when it is a reset."""
        for writer in self._writers:
            if reset:
                # With no time to linger, closing sends RST.
                with contextlib.suppress(OSError, AttributeError):
                    sock: socket.socket = writer.get_extra_info("socket")
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()
            else:
                writer.close()


@contextlib.asynccontextmanager
async def proxied(host: str, port: int, *, weather: Weather | None = None, seed: int = 0) -> AsyncIterator[Proxy]:
    """A proxy in front of ``host:port`` on a free loopback port until the block ends."""
    tasks: set[asyncio.Task[None]] = set()
    proxy = Proxy("127.0.0.1", 0, weather or Weather(), random.Random(seed))
    proxy.thaw()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(proxy._serve(reader, writer, (host, port)))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(accept, proxy.host, 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
