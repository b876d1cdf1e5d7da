"""How the commands find a running fedbus: from the environment, else from the file that ``fedbus up`` leaves."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from bus.settings import DEFAULT_URL

DEFAULT_STORE = Path(".fedbus")
DEFAULT_GATEWAY_URL = "http://127.0.0.1:8700"
FILE_NAME = "connection.json"


class Connection(BaseModel):
    """Where a running fedbus is; the file that holds it is readable by its owner alone."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    nats_url: str
    nats_token: str = ""
    gateway_url: str = ""
    join_token: str = ""

    def env(self) -> dict[str, str]:
        """The environment in which agents and clients find this fedbus."""
        found = {
            "NATS_URL": self.nats_url,
            "NATS_TOKEN": self.nats_token,
            "FEDBUS_GATEWAY_URL": self.gateway_url,
            "FEDBUS_GATEWAY_JOIN_TOKEN": self.join_token,
        }
        return {name: value for name, value in found.items() if value}

    def write(self, store: Path, *, replace: bool = True) -> None:
        """Leaves the file in ``store``; one that is there already stays unless it shall be replaced."""
        store.mkdir(parents=True, exist_ok=True)
        temporary = store / f".{FILE_NAME}.{os.getpid()}"
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(self.model_dump_json(indent=2))
        if replace:
            os.replace(temporary, store / FILE_NAME)
            return
        with contextlib.suppress(FileExistsError):
            os.link(temporary, store / FILE_NAME)
        temporary.unlink()


def read_connection(store: Path = DEFAULT_STORE) -> Connection | None:
    """What the file in ``store`` says, if there is a readable one."""
    try:
        return Connection.model_validate_json((store / FILE_NAME).read_bytes())
    except (OSError, ValidationError):
        return None


def agreed_connection(store: Path = DEFAULT_STORE) -> Connection:
    """The connection that everything started in this folder shares; whoever starts first decides its tokens.

    So agents may wait for a broker that does not run yet, and still know its token.
    """
    if (known := read_connection(store)) is not None:
        return known
    made = Connection(
        nats_url=DEFAULT_URL,
        nats_token=secrets.token_urlsafe(24),
        gateway_url=DEFAULT_GATEWAY_URL,
        join_token=secrets.token_urlsafe(16),
    )
    made.write(store, replace=False)
    return read_connection(store) or made


def use_running_fedbus(store: Path = DEFAULT_STORE, *, agree: bool = False) -> None:
    """Makes this process talk to the fedbus that runs in this folder, unless the environment names another.

    Args:
        agree: make the folder's connection when there is none, as a part that is started first does.
    """
    if "NATS_URL" in os.environ:
        return
    connection = agreed_connection(store) if agree else read_connection(store)
    if connection is not None:
        for name, value in connection.env().items():
            os.environ.setdefault(name, value)
