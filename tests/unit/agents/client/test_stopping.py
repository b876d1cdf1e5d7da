"""A native client stops when it is told to, whatever else happens at that moment."""

from __future__ import annotations

import asyncio

from agents.client.address import Address
from agents.client.runner import Client
from agents.client.trainer import SyntheticTrainer


class Losing(Client):
    """A client whose connection is lost just when it is stopped, as when gateway and client stop together."""

    async def _connect(self) -> None:
        self.connecting.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise ConnectionResetError("lost") from None

    connecting: asyncio.Event


async def test_a_stop_that_comes_with_the_loss_of_the_connection_is_a_stop() -> None:
    client = Losing(Address("http://127.0.0.1:9"), "client", SyntheticTrainer(None))  # type: ignore[arg-type]
    client.connecting = asyncio.Event()
    running = asyncio.create_task(client.run())
    await client.connecting.wait()
    running.cancel()
    async with asyncio.timeout(5):
        await asyncio.wait([running])
    assert running.cancelled()
