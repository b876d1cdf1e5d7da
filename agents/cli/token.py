"""The commands for join tokens: ``token create``, ``token list`` and ``token revoke``."""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer
from rich.table import Table

from agents.cli.console import console, errors
from agents.cli.finding import CONNECT_S
from agents.core.exchange.access import ROLES
from agents.runtime.connection import use_running_fedbus
from bus.client import Bus
from bus.process.logs import escaped
from bus.words.tokens import Role, TokenLimits, TokenRecord, new_token

app = typer.Typer(no_args_is_help=True, help="Say who may join: tokens for watching, training and administration.")
_SPAN = re.compile(r"(\d{1,6})([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


def parse_span(text: str) -> timedelta:
    """A span of time such as ``90s``, ``30m``, ``12h`` or ``7d``.

    Raises:
        typer.BadParameter: it is none, or of no length.
    """
    match = _SPAN.fullmatch(text)
    if match is None or int(match[1]) == 0:
        raise typer.BadParameter(f"{text!r} is not like 90s, 30m, 12h or 7d")
    return timedelta(seconds=int(match[1]) * _SECONDS[match[2]])


def parse_role(text: str) -> Role:
    """The role of this name.

    Raises:
        typer.BadParameter: there is none.
    """
    for role in ROLES:
        if role == text:
            return role
    raise typer.BadParameter(f"{text!r} is not one of {', '.join(ROLES)}")


@app.command()
def create(
    role: Annotated[str, typer.Option("--role", help="watch < train < admin: each may what the ones before may.")],
    note: Annotated[str, typer.Option("--note", help="Whom it is for; shown by list.")] = "",
    clients: Annotated[int | None, typer.Option("--clients", min=1, help="At most so many connected at once.")] = None,
    rate: Annotated[float | None, typer.Option("--rate", min=1, help="Bytes a second that they may send.")] = None,
    expires: Annotated[str, typer.Option("--expires", help="After 90s, 30m, 12h or 7d; never without it.")] = "",
) -> None:
    """Make a token and print it, this once: only its hash is kept."""
    until = datetime.now(UTC) + parse_span(expires) if expires else None
    limits = TokenLimits(clients=clients, bytes_per_s=rate)
    token, record = new_token(parse_role(role), note=note[:100], limits=limits, expires=until)
    use_running_fedbus()
    asyncio.run(_put(record))
    typer.echo(token)
    errors.print(f"{record.id} may {record.role}{_conditions(record)}. It is not shown again.", style="dim")


@app.command("list")
def list_tokens(
    ended_too: Annotated[bool, typer.Option("--all", help="Those that are revoked or expired too.")] = False,
) -> None:
    """List the tokens that let somebody in: id, role, state and limits."""
    use_running_fedbus()
    now = datetime.now(UTC)
    records = [one for one in asyncio.run(_all()) if ended_too or not one.ended(now)]
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim")
    for name in ("id", "role", "state", "made"):
        table.add_column(name, no_wrap=True)
    table.add_column("limits and note", overflow="fold")
    for one in records:
        state = (one.ended(now) or "valid").split()[-1]
        about = ", ".join(filter(None, (_conditions(one).removeprefix(", "), escaped(one.note))))
        table.add_row(one.id, one.role, state, f"{one.created.astimezone():%m-%d}", about)
    console.print(table if records else "no tokens; fedbus token create --role train makes one")


@app.command()
def revoke(name: Annotated[str, typer.Argument(metavar="ID", help="As token list shows it.")]) -> None:
    """End a token: its clients are disconnected within a second or two, and their tasks go to others."""
    use_running_fedbus()
    record = asyncio.run(_revoke(name))
    console.print(f"{record.id} is revoked")


def _conditions(record: TokenRecord) -> str:
    limits, found = record.limits, ""
    if limits.clients is not None:
        found += f", {limits.clients} clients at once"
    if limits.bytes_per_s is not None:
        found += f", {limits.bytes_per_s:g} bytes/s"
    if record.expires is not None:
        found += f", until {record.expires.astimezone():%Y-%m-%d %H:%M:%S}"
    return found


async def _put(record: TokenRecord) -> None:
    async with Bus.connect(name="token", wait_s=CONNECT_S) as bus:
        await bus.tokens.put(record)


async def _all() -> list[TokenRecord]:
    async with Bus.connect(name="token", wait_s=CONNECT_S) as bus:
        return await bus.tokens.all()


async def _revoke(name: str) -> TokenRecord:
    async with Bus.connect(name="token", wait_s=CONNECT_S) as bus:
        return await bus.tokens.revoke(name)
