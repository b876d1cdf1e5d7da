"""The commands around clients: ``client`` runs some that train for a gateway, ``clients`` lists who is connected."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import httpx
import typer
import websockets
from rich.table import Table

from agents.cli.client_mix import ClientMix, Threads
from agents.cli.console import console, errors
from agents.cli.finding import CONNECT_S
from agents.cli.processes import supervisor
from agents.cli.serve import until_interrupted
from agents.cli.system import client_commands
from agents.client.address import Address, GatewayUnreachableError
from agents.client.greeting import GatewayRefusedError, knock
from agents.client.settings import ClientSettings
from agents.core.exchange.messages import ProtocolError
from agents.engines import choose
from agents.runtime.connection import (
    DEFAULT_GATEWAY_URL,
    DEFAULT_STORE,
    Connection,
    agreed_connection,
    read_connection,
    use_running_fedbus,
)
from agents.runtime.reminding import Reminder
from agents.runtime.settings import variable
from bus.client import Bus
from bus.process.logs import configure, escaped, without_login
from bus.words.tokens import new_token

PAUSE_S, LOOK_S, ANSWER_S = 0.5, 2.0, 5.0
REFUSALS = 4
"""Refusals in a row of a login that this folder's file gave, and that whoever starts there may still replace."""


def _checked_address(url: str) -> str:
    parts = urlsplit(url)
    if url and (parts.scheme not in ("http", "https") or not parts.hostname):
        raise typer.BadParameter(f"{url!r} is not like http://127.0.0.1:8700 or https://fedbus.example")
    return url


Gateway = Annotated[
    str,
    typer.Option(
        "--gateway", envvar=variable(ClientSettings, "url"), callback=_checked_address, help="URL of the gateway."
    ),
]
Token = Annotated[str, typer.Option("--token", envvar=variable(ClientSettings, "join_token"), help="Join token.")]


def client(
    native: Annotated[int, typer.Option("--native", min=0, max=256, help="Native clients to run.")] = 0,
    browser: Annotated[int, typer.Option("--browser", min=0, max=64, help="Headless Chromium clients to run.")] = 0,
    gateway: Gateway = "",
    token: Token = "",
    threads: Threads = 1,
    engine: Annotated[
        str, typer.Option("--engine", help="Engine to train with; default: the best that can be used.")
    ] = "",
    logs: Annotated[Path, typer.Option("--logs", help="Folder of the clients' logs.")] = DEFAULT_STORE / "logs",
) -> None:
    """Run clients that train for a gateway until Ctrl-C."""
    if not native and not browser:
        raise typer.BadParameter("say how many: --native N or --browser N")
    if native and engine:
        choose(engine)
    configure("client")
    if not gateway:
        agreed_connection()
    asyncio.run(until_interrupted(_train(ClientMix(browser, native), gateway, token, threads, engine, logs)))


def list_clients(
    gateway: Gateway = "",
    token: Annotated[
        str,
        typer.Option(
            "--token", envvar=variable(ClientSettings, "admin_token"), help="Of the role admin; default: a fresh one."
        ),
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """List the clients that are connected to the gateway now."""
    use_running_fedbus()
    found = asyncio.run(connected_clients(find_gateway(gateway, token), token))
    if as_json:
        for one in found:
            typer.echo(json.dumps(one))
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("client", "engine", "tasks", "since"):
        table.add_column(name, overflow="fold", justify="right" if name == "tasks" else "left")
    for one in sorted(found, key=lambda one: str(one["client"])):
        since = f"{datetime.fromisoformat(str(one['since'])).astimezone():%H:%M:%S}"
        table.add_row(escaped(str(one["client"])), escaped(str(one["engine"])), str(one["leases"]), since)
    console.print(table if found else "no clients; fedbus client --native 1 runs one")


async def connected_clients(gateway: Connection, token: str) -> list[dict[str, str | int]]:
    """What the gateway says of its clients.

    Raises:
        GatewayRefusedError: the token is not an administrator's.
        GatewayUnreachableError: it does not answer.
    """
    address = address_of(gateway)
    async with contextlib.AsyncExitStack() as stack:
        is_fresh = not token
        if is_fresh:
            token = await stack.enter_async_context(_short_lived_token())
        http = await stack.enter_async_context(httpx.AsyncClient(timeout=ANSWER_S, verify=address.tls() or True))
        give_up = time.monotonic() + ANSWER_S
        while True:
            try:
                answer = await http.get(f"{gateway.gateway_url}/clients", headers={"Authorization": f"Bearer {token}"})
            except httpx.HTTPError as error:
                raise GatewayUnreachableError(
                    f"the gateway at {gateway.gateway_url} does not answer: {error}", hint="fedbus agent gateway"
                ) from None
            if answer.status_code == HTTPStatus.OK:
                found: list[dict[str, str | int]] = answer.json()
                return found
            # A fresh token takes a moment to reach the gateway.
            if not is_fresh or time.monotonic() > give_up or answer.status_code == HTTPStatus.TOO_MANY_REQUESTS:
                raise GatewayRefusedError(
                    f"the gateway refuses: {answer.text.strip()[:200]}", hint="give an administrator's token as --token"
                )
            await asyncio.sleep(PAUSE_S)


@contextlib.asynccontextmanager
async def _short_lived_token() -> AsyncIterator[str]:
    """A token for administration, as only the operator can make one; it ends with the block."""
    until = datetime.now(UTC) + timedelta(minutes=1)
    token, record = new_token("admin", note="fedbus clients", expires=until)
    async with Bus.connect(name="cli", wait_s=CONNECT_S) as bus:
        await bus.tokens.put(record)
        try:
            yield token
        finally:
            await bus.tokens.revoke(record.id)


def find_gateway(gateway: str, token: str, store: Path = DEFAULT_STORE) -> Connection:
    """Where the gateway is and how to join it: what is given counts, else what the folder's file says now."""
    known = read_connection(store)
    url = gateway or (known.gateway_url if known else "") or DEFAULT_GATEWAY_URL
    # The folder's token is for the folder's gateway alone.
    own = known.join_token if known and known.gateway_url == url.rstrip("/") else ""
    return Connection(nats_url="nats://unused", gateway_url=url.rstrip("/"), join_token=token or own)


async def _train(mix: ClientMix, gateway: str, token: str, threads: int, engine: str, logs: Path) -> None:
    found = await reach(lambda: find_gateway(gateway, token), patience=1 if token else REFUSALS)
    prefix = f"{os.uname().nodename.split('.')[0][:20]}-{os.getpid()}-"
    store = logs.absolute().parent
    commands = client_commands(mix, found, store=store, logs=logs, threads=threads, prefix=prefix, engine=engine)
    async with supervisor() as processes:
        for command in commands:
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
    refused, reminder = 0, Reminder(lambda line: errors.print(line, soft_wrap=True, markup=False))
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
        reminder.waits(f"waiting for the gateway at {target.gateway_url}: {reason}")
        await asyncio.sleep(PAUSE_S)


def address_of(target: Connection) -> Address:
    """The gateway as its clients see it."""
    return Address(target.gateway_url, target.join_token, ClientSettings().ca)


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
