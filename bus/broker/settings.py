"""Where the broker is and how to log in to it, from the environment."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from bus.process.logs import without_login
from bus.words.payload import OPERATOR

DEFAULT_URL = "nats://127.0.0.1:4222"
REPLICAS = (1, 3, 5)
"""How many nodes may keep a stream: an even number survives no more losses than the odd one below it."""


class BusSettings(BaseSettings):
    """The connection to the broker: each field comes from ``NATS_<FIELD>`` unless it is given.

    ``url`` may name several brokers of one cluster, separated by commas. ``replicas``, from ``FEDBUS_REPLICAS``, is how
    many of its nodes keep each stream; without it, that is the operator's business. ``inbox_prefix`` is where answers
    come, by default where the role that logs in may hear them. ``creds`` is the path of a NATS credentials file;
    ``ca``, ``cert`` and ``key`` are paths of PEM files, the last two for a broker that asks its clients for
    certificates.
    """

    model_config = SettingsConfigDict(
        env_prefix="NATS_", env_ignore_empty=True, frozen=True, extra="ignore", populate_by_name=True
    )

    url: str = Field(default=DEFAULT_URL, min_length=1)
    replicas: int | None = Field(default=None, validation_alias="FEDBUS_REPLICAS")
    token: SecretStr | None = None
    user: str | None = None
    password: SecretStr | None = None
    creds: Path | None = None
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    inbox_prefix: str = Field(default_factory=lambda given: inbox_prefix(given["user"]), min_length=1)

    @field_validator("replicas")
    @classmethod
    def _odd(cls, replicas: int | None) -> int | None:
        if replicas not in (None, *REPLICAS):
            raise ValueError("FEDBUS_REPLICAS is 1, 3 or 5")
        return replicas

    @property
    def servers(self) -> list[str]:
        """The brokers, in the order in which ``url`` names them."""
        return [one.strip() for one in self.url.split(",") if one.strip()]

    @property
    def place(self) -> str:
        """Where the broker is, without the login that ``url`` may hold: for logs and messages."""
        return without_login(self.url)

    def options(self, tls: ssl.SSLContext | None) -> dict[str, Any]:
        """How nats-py is to log in: its options that are set."""
        options = {
            "tls": tls,
            "token": self.token.get_secret_value() if self.token else None,
            "user": self.user,
            "password": self.password.get_secret_value() if self.password else None,
            "user_credentials": str(self.creds) if self.creds else None,
            "inbox_prefix": self.inbox_prefix,
        }
        return {key: value for key, value in options.items() if value is not None}

    def tls(self) -> ssl.SSLContext | None:
        """The TLS context that the files ask for, or nothing: then ``tls://`` trusts the system's authorities.

        Raises:
            OSError: a file is missing or is not PEM.
        """
        if self.ca is None and self.cert is None:
            return None
        context = ssl.create_default_context(cafile=str(self.ca) if self.ca else None)
        if self.cert is not None:
            context.load_cert_chain(self.cert, self.key)
        return context


def inbox_prefix(role: str | None) -> str:
    """First token of the subjects on which answers come to a role; the stock one without a login and for the operator,
    whose programs need not be fedbus's."""
    return "_INBOX" if role in (None, OPERATOR) else f"_INBOX_{role}"
