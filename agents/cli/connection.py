"""How the commands find a running fedbus: from the environment, else from the file that ``fedbus up`` leaves."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

DEFAULT_STORE = Path(".fedbus")
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

    def write(self, store: Path) -> None:
        """Leaves the file in ``store``."""
        store.mkdir(parents=True, exist_ok=True)
        temporary = store / f".{FILE_NAME}.{os.getpid()}"
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(self.model_dump_json(indent=2))
        os.replace(temporary, store / FILE_NAME)


def use_running_fedbus(store: Path = DEFAULT_STORE) -> None:
    """Makes this process talk to the fedbus that runs in this folder, unless the environment names another."""
    if "NATS_URL" in os.environ:
        return
    try:
        connection = Connection.model_validate_json((store / FILE_NAME).read_bytes())
    except (OSError, ValidationError):
        return
    for name, value in connection.env().items():
        os.environ.setdefault(name, value)
