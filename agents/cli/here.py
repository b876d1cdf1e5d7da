"""The commands about the fedbus of this folder: ``agent`` runs a part of it, ``env`` and ``page`` say where it is."""

from __future__ import annotations

import os
import runpy
import shlex
import socket
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer

from agents.client.address import GatewayUnreachableError
from agents.runtime.connection import (
    DEFAULT_GATEWAY_URL,
    DEFAULT_STORE,
    FILE_NAME,
    GATEWAY_FILE,
    Connection,
    agreed_connection,
    read_connection,
)
from agents.words.events import ROLES
from bus.errors import FedbusError
from bus.words.payload import OPERATOR

AGENTS = ("labeller", "dispatcher", "aggregator", "evaluator", "gateway")
LISTENS_S = 2.0
Store = Annotated[Path, typer.Option("--store", help="Directory of the broker's data; survives restarts.")]


class NoFedbusHereError(FedbusError):
    """No fedbus was started in this folder."""

    code = "no_fedbus_here"


def agent(
    name: Annotated[str, typer.Argument(help=f"One of {', '.join(AGENTS)}.")],
) -> None:
    """Run one agent in this terminal; it waits for the broker and stops on Ctrl-C."""
    if name not in AGENTS:
        raise typer.BadParameter(f"{name!r} is not one of {', '.join(AGENTS)}")
    if "NATS_URL" not in os.environ:
        agreed_connection()
        # Where clients that start in this folder look for the gateway.
        os.environ.setdefault("FEDBUS_GATEWAY_URL_FILE", str((DEFAULT_STORE / GATEWAY_FILE).absolute()))
    runpy.run_module(f"agents.{name}", run_name="__main__", alter_sys=True)


def env(
    role: Annotated[str, typer.Argument(help=f"As whom: {', '.join(ROLES)}.")] = OPERATOR,
    store: Store = DEFAULT_STORE,
) -> None:
    """Print how programs of your own reach the fedbus of this folder: eval "$(fedbus env)"."""
    if role not in ROLES:
        raise typer.BadParameter(f"{role!r} is not one of {', '.join(ROLES)}")
    for name, value in _known_here(store).env(role).items():
        typer.echo(f"export {name}={shlex.quote(value)}")


def page(store: Store = DEFAULT_STORE) -> None:
    """Print the address of the page with its token, to be opened in a browser; exit 1 if nothing listens there."""
    known = _known_here(store)
    url = known.gateway_url or DEFAULT_GATEWAY_URL
    typer.echo(f"{url}/#token={known.join_token}")
    parts = urlsplit(url)
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((parts.hostname or "", port), timeout=LISTENS_S).close()
    except (OSError, ValueError):
        raise GatewayUnreachableError(
            f"nothing listens at {url} now", hint="fedbus up, or beside a running broker fedbus agent gateway"
        ) from None


def _known_here(store: Path) -> Connection:
    if (known := read_connection(store)) is None:
        raise NoFedbusHereError(
            f"there is no fedbus in this folder: {store / FILE_NAME} is missing",
            hint="go to the folder where fedbus up or fedbus broker was started, or start one here",
        )
    return known
