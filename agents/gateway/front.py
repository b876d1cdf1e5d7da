"""What every request meets first: whether it is meant for this gateway, and asks for something that is served here."""

from __future__ import annotations

import ipaddress
import logging
import socket
from collections.abc import Iterable

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from agents.gateway.access import is_loopback
from bus.errors import FedbusError
from bus.process.logs import escaped

log = logging.getLogger(__name__)
METHODS = ("GET", "HEAD")


class HostRefusedError(FedbusError):
    """The request names a host that the gateway does not serve."""

    code = "host"


class Front:
    """``app`` for requests by a name of this gateway, with a method that something here answers.

    A page elsewhere can have its own name resolve to this machine (DNS rebinding), and its scripts then speak to what
    listens here as to their own server. What they cannot do is to send another ``Host``. An address in its place is
    nobody's name, so every address is taken.
    """

    def __init__(self, app: ASGIApp, names: Iterable[str]) -> None:
        self._app = app
        self._names = frozenset(name.lower().rstrip(".") for name in names)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request or WebSocket."""
        try:
            self._check(Headers(scope=scope).getlist("host"))
        except HostRefusedError as error:
            log.info("refused %s", escaped(error.message[:300]))
            answer: Response = PlainTextResponse(f"{error.message} ({error.hint}) [{error.code}]\n", 421)
        else:
            if scope["type"] != "http" or scope["method"] in METHODS:
                await self._app(scope, receive, send)
                return
            # A body that nobody will read, and whatever follows a CONNECT, ends with the connection.
            answer = PlainTextResponse(
                "only GET and HEAD mean something here\n", 405, {"Allow": ", ".join(METHODS), "Connection": "close"}
            )
        await answer(scope, receive, send)

    def _check(self, hosts: list[str]) -> None:
        """Of no host, none can be wrong: browsers always name one.

        Raises:
            HostRefusedError: it is none of the gateway's, or there are several.
        """
        if not hosts:
            return
        name = host_name(hosts[0])
        if len(hosts) > 1 or not (name in self._names or _is_address(name)):
            raise HostRefusedError(
                f"{hosts[0]!r} is no name of this gateway", hint="its operator names more in FEDBUS_GATEWAY_HOSTS"
            )


def host_name(host: str) -> str:
    """The name in a ``Host`` header, without its port, in lower case."""
    name, _, port = host.rpartition(":")
    bare = name if name and port.isdecimal() else host
    return bare.removesuffix(":").lower().rstrip(".")


def own_names(listens_on: str, more: Iterable[str]) -> set[str]:
    """The names by which a gateway is reached that listens on this address."""
    names = {"localhost", listens_on, *more}
    return names if is_loopback(listens_on) else {*names, socket.gethostname(), socket.getfqdn()}


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True
