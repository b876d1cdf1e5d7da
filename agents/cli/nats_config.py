"""``nats-config``: the logins of all roles, for a nats-server of your own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from agents.cli.console import console
from agents.words.events import ROLES
from bus.broker.permissions import authorization, new_passwords
from bus.errors import FedbusError
from bus.process.files import write_private

CONFIG = "authorization.conf"


class ConfigExistsError(FedbusError):
    """The folder holds logins already."""

    code = "config_exists"


def nats_config(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the files; only its owner may read them.")],
    force: Annotated[bool, typer.Option("--force", help="Replace the logins that are there.")] = False,
) -> None:
    """Write a login with a random password for each role, and what each of them may say, for your own nats-server."""
    write_logins(out, force=force)
    console.print(
        f"{out / CONFIG}: include it in your server's config, and restart or reload the server", soft_wrap=True
    )
    console.print(f"{out}/ROLE.env: NATS_USER and NATS_PASSWORD for {', '.join(ROLES)}", soft_wrap=True)


def write_logins(folder: Path, *, force: bool = False) -> None:
    """Writes ``authorization.conf`` and an environment file for each role.

    Raises:
        ConfigExistsError: they are there already, and ``force`` is not set.
    """
    if (folder / CONFIG).exists() and not force:
        raise ConfigExistsError(
            f"{folder / CONFIG} exists", hint="--force replaces it; every agent then needs its new password"
        )
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    passwords = new_passwords()
    for role, password in passwords.items():
        write_private(folder / f"{role}.env", f"NATS_USER={role}\nNATS_PASSWORD={password}\n")
    # Last: who sees it finds the others.
    write_private(folder / CONFIG, authorization(passwords))
