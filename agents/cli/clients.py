"""The commands around clients: ``client`` runs some that train for a gateway, ``clients`` lists who is connected."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import httpx
import typer
import websockets

from agents.cli import options as o
from agents.cli.display import console, errors
from agents.cli.processes import supervisor
from agents.cli.serve import until_interrupted
from agents.cli.system import client_commands
from agents.client.address import Address
from agents.client.greeting import GatewayRefusedError, knock
from agents.core.exchange.messages import ProtocolError
from agents.runtime.connection import DEFAULT_GATEWAY_URL, DEFAULT_STORE, Connection, agreed_connection, read_connection
from bus.process.logs import configure, without_login

PAUSE_S, REMIND_S, LOOK_S = 0.5, 10.0, 2.0
REFUSALS = 4
"""Refusals in a row of a login that this folder's file gave, and that whoever starts there may still replace."""

Gateway = Annotated[str, typer.Option("--gateway", envvar="FEDBUS_GATEWAY_URL", help="URL of the gateway.")]
Token = Annotated[str, typer.Option("--token", envvar="FEDBUS_GATEWAY_JOIN_TOKEN", help="Join token.")]


def client(
    native: Annotated[int, typer.Option("--native", min=0, max=256, help="Native clients to run.")] = 0,
    browser: Annotated[int, typer.Option("--browser", min=0, max=64, help="Headless Chromium clients to run.")] = 0,
    gateway: Gateway = "",
    token: Token = "",
    threads: o.Threads = 1,
    logs: Annotated[Path, typer.Option("--logs", help="Folder of the clients' logs.")] = DEFAULT_STORE / "logs",
) -> None:
    """Run clients that train for a gateway until Ctrl-C."""
    if not native and not browser:
        raise typer.BadParameter("say how many: --native N or --browser N")
    configure("client")
    if not gateway:
        agreed_connection()
    asyncio.run(until_interrupted(_train(o.ClientMix(browser, native), gateway, token, threads, logs)))


def find_gateway(gateway: str, token: str, store: Path = DEFAULT_STORE) -> Connection:
    """Where the gateway is and how to join it: what is given counts, else what the folder's file says now."""
    known = read_connection(store)
    url = gateway or (known.gateway_url if known else "") or DEFAULT_GATEWAY_URL
    # The folder's token is for the folder's gateway alone.
    own = known.join_token if known and known.gateway_url == url.rstrip("/") else ""
    return Connection(nats_url="nats://unused", gateway_url=url.rstrip("/"), join_token=token or own)


async def _train(mix: o.ClientMix, gateway: str, token: str, threads: int, logs: Path) -> None:
    found = await reach(lambda: find_gateway(gateway, token), patience=1 if token else REFUSALS)
    prefix = f"{os.uname().nodename.split('.')[0][:20]}-{os.getpid()}-"
    store = logs.absolute().parent
    async with supervisor() as processes:
        for command in client_commands(mix, found, store=store, logs=logs, threads=threads, prefix=prefix):
            processes.start(command)
        console.print(
            f"connected to {found.gateway_url}: {mix} training; logs in {logs}. Stop with Ctrl-C.", soft_wrap=True
        )
        await _tell_of_losses(found.gateway_url)


async def reach(find: Callable[[], Connection], *, patience: int = 1) -> Connection:
    """Waits for a gateway that lets clients in, and says on stderr why it waits.

    Args:
        find: says where it is, asked anew for each attempt.
        patience: refusals in a row that end the waiting.

    Raises:
        GatewayRefusedError: the gateway does not want clients with this token.
    """
    said, said_at, refused = "", 0.0, 0
    while True:
        target = find()
        try:
            await knock(address_of(target))
            return target
        except GatewayRefusedError as error:
            refused += 1
            if refused >= patience:
                raise GatewayRefusedError(
                    f"the gateway at {target.gateway_url} refuses: {error.message}", hint=error.hint
                ) from None
            reason = error.message
        except (OSError, TimeoutError, ProtocolError, websockets.WebSocketException) as error:
            refused, reason = 0, without_login(str(error)) or type(error).__name__
        line = f"waiting for the gateway at {target.gateway_url}: {reason}"
        if line != said or time.monotonic() - said_at >= REMIND_S:
            said, said_at = line, time.monotonic()
            errors.print(line, soft_wrap=True, markup=False)
        await asyncio.sleep(PAUSE_S)


def address_of(target: Connection) -> Address:
    """The gateway as its clients see it."""
    authority = os.environ.get("FEDBUS_GATEWAY_CA")
    return Address(target.gateway_url, target.join_token, Path(authority) if authority else None)


async def _tell_of_losses(url: str) -> None:
    """Says when the gateway goes and comes; the clients look after themselves."""
    there = True
    tls = address_of(Connection(nats_url="", gateway_url=url)).tls()
    async with httpx.AsyncClient(timeout=LOOK_S, verify=tls or True) as http:
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                await http.get(f"{url}/healthz")
            except httpx.HTTPError as error:
                if there:
                    errors.print(f"lost the gateway at {url}: {error}; the clients try on", soft_wrap=True)
                there = False
            else:
                if not there:
                    console.print(f"connected to {url} again", soft_wrap=True)
                there = True
