"""How a process finds a running fedbus: from the environment, else from the file that it leaves in its folder."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agents.words.events import ROLES
from bus.broker.permissions import new_passwords
from bus.broker.settings import DEFAULT_URL, BusSettings
from bus.process.files import write_private
from bus.words.payload import OPERATOR

DEFAULT_STORE = Path(".fedbus")
DEFAULT_GATEWAY_URL = "http://127.0.0.1:8700"
FILE_NAME, GATEWAY_FILE = "connection.json", "gateway.url"
DEFAULT_PORT = 4222
_LOGINS = ("NATS_USER", "NATS_PASSWORD", "NATS_TOKEN", "NATS_CREDS")


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

    def write(self, store: Path, *, replace: bool = True) -> None:
        """Leaves the file in ``store``; one that is there already stays unless it shall be replaced."""
        store.mkdir(parents=True, exist_ok=True)
        text = self.model_dump_json(indent=2)
        if replace:
            write_private(store / FILE_NAME, text)
            return
        temporary = store / f"{FILE_NAME}.{os.getpid()}.new"
        write_private(temporary, text)
        with contextlib.suppress(FileExistsError):
            os.link(temporary, store / FILE_NAME)
        temporary.unlink()


def read_connection(store: Path = DEFAULT_STORE) -> Connection | None:
    """What the file in ``store`` says, if there is a readable one; where a gateway listens counts as it says itself."""
    try:
        known = Connection.model_validate_json((store / FILE_NAME).read_bytes())
    except (OSError, ValidationError):
        return None
    with contextlib.suppress(OSError):
        known = known.model_copy(update={"gateway_url": (store / GATEWAY_FILE).read_text().strip()})
    return known


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


class Surroundings:
    """What this process knows of fedbus: its environment, and where that is silent the file of the folder.

    The file is read anew each time, because who starts later may change it: another port, another login. A login of
    the folder counts for the folder's broker alone, also where the environment names that broker without a login.
    """

    def __init__(self, role: str, store: Path = DEFAULT_STORE) -> None:
        self._role = role
        self._store = store
        self._given = {name: value for name, value in os.environ.items() if value}

    def look(self) -> BusSettings:
        """How to reach the broker now; the environment of this process says the same afterwards."""
        for name, value in self._added().items():
            if name not in self._given:
                os.environ[name] = value
        return BusSettings()

    def _added(self) -> dict[str, str]:
        known = read_connection(self._store)
        if known is None:
            return {}
        if (url := self._given.get("NATS_URL")) is not None and (
            any(name in self._given for name in _LOGINS) or _place(url) != _place(known.nats_url)
        ):
            return {}
        return known.env(self._role)


def use_running_fedbus(store: Path = DEFAULT_STORE, *, role: str = OPERATOR) -> None:
    """Makes this process talk to the fedbus that runs in this folder, unless the environment names another."""
    Surroundings(role, store).look()


def _place(url: str) -> tuple[str, int]:
    """Host and port of a broker's address, so that two ways to write the same are equal; a login makes it another."""
    parts = urlsplit(url if "//" in url else f"//{url}")
    host = "127.0.0.1" if parts.hostname in ("localhost", "::1") else parts.hostname or ""
    with contextlib.suppress(ValueError):
        return ("" if parts.username else host, parts.port or DEFAULT_PORT)
    return ("", 0)
