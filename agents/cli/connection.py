"""How the commands find a running fedbus: from the environment, else from the file that ``fedbus up`` leaves."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agents.client.address import Address
from agents.words.events import ROLES
from bus.broker.permissions import new_passwords
from bus.broker.settings import DEFAULT_URL, BusSettings
from bus.words.payload import OPERATOR

DEFAULT_STORE = Path(".fedbus")
DEFAULT_GATEWAY_URL = "http://127.0.0.1:8700"
FILE_NAME = "connection.json"


class Connection(BaseModel):
    """Where a running fedbus is; the file that holds it is readable by its owner alone."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    nats_url: str
    passwords: dict[str, str] = Field(default_factory=dict, description="of each role at the broker; none: no login")
    gateway_url: str = ""
    join_token: str = ""

    def env(self, role: str | None = None) -> dict[str, str]:
        """The environment in which an agent of this role finds the broker and the gateway; a client has no role."""
        found = {
            "NATS_URL": self.nats_url if role else "",
            "NATS_USER": role if role in self.passwords else "",
            "NATS_PASSWORD": self.passwords.get(role, "") if role else "",
            "FEDBUS_GATEWAY_URL": self.gateway_url,
            "FEDBUS_GATEWAY_JOIN_TOKEN": self.join_token,
        }
        return {name: value for name, value in found.items() if value}

    def settings(self, role: str = OPERATOR) -> BusSettings:
        """How this process reaches the broker in this role."""
        password = self.passwords.get(role)
        login = {"user": role, "password": password} if password else {}
        return BusSettings.model_validate({"url": self.nats_url, **login})

    @property
    def gateway(self) -> Address:
        """The gateway, for a client with the join token."""
        return Address(self.gateway_url, self.join_token)

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
    """The connection that everything started in this folder shares; whoever starts first decides its secrets.

    So agents may wait for a broker that does not run yet, and still know how to log in to it.
    """
    if (known := read_connection(store)) is not None and known.passwords.keys() >= set(ROLES):
        return known
    made = Connection(
        nats_url=DEFAULT_URL,
        passwords=new_passwords(),
        gateway_url=DEFAULT_GATEWAY_URL,
        join_token=secrets.token_urlsafe(16),
    )
    made.write(store, replace=known is not None)
    return read_connection(store) or made


def use_running_fedbus(store: Path = DEFAULT_STORE, *, role: str = OPERATOR, agree: bool = False) -> None:
    """Makes this process talk to the fedbus that runs in this folder, unless the environment names another.

    Args:
        role: as whom it logs in to the broker.
        agree: make the folder's connection when there is none, as a part that is started first does.
    """
    if "NATS_URL" in os.environ:
        return
    connection = agreed_connection(store) if agree else read_connection(store)
    if connection is not None:
        for name, value in connection.env(role).items():
            os.environ.setdefault(name, value)
