"""Which gateway a native client works for, and how it proves that it may."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from pathlib import Path

from bus.errors import FedbusError


class AuthorityUnusableError(FedbusError):
    """The file of the certificate authority is missing or is not PEM."""

    code = "authority_unusable"


class GatewayUnreachableError(FedbusError):
    """The gateway does not answer."""

    code = "gateway_unreachable"


@dataclass(frozen=True)
class Address:
    """A gateway: its base URL, the join token, and for ``https`` the authorities to trust (none: the system's)."""

    url: str
    token: str = field(default="", repr=False)
    authority: Path | None = None

    @property
    def socket_url(self) -> str:
        """Where the conversation takes place."""
        return self.url.replace("http", "ws", 1).rstrip("/") + "/ws"

    @property
    def headers(self) -> dict[str, str]:
        """What an HTTP request says of the client."""
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}

    def tls(self) -> ssl.SSLContext | None:
        """How to check the gateway's certificate; nothing for a gateway without encryption.

        Raises:
            AuthorityUnusableError: the authority's file cannot be used.
        """
        if not self.url.startswith("https:"):
            return None
        try:
            return ssl.create_default_context(cafile=str(self.authority) if self.authority else None)
        except OSError as error:
            raise AuthorityUnusableError(
                f"cannot trust {self.authority}: {error.strerror or error}",
                hint="FEDBUS_GATEWAY_CA names a PEM file with the authority's certificate",
            ) from None
