"""Lets clients in by their join tokens: follows the operator's tokens, and guards what the gateway serves over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import math
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from agents.core.exchange.access import AccessRefusedError, AccessTable, Failures, Grant
from agents.gateway.settings import GatewaySettings
from agents.runtime.tasks import background
from bus.broker.tokens import LOOK_EVERY_S
from bus.client import Bus
from bus.process.logs import escaped
from bus.words.tokens import Role

log = logging.getLogger(__name__)
GRANT = "fedbus.grant"
"""Where a request's scope holds the ``Grant`` under which it is served."""
_CHALLENGE = {"WWW-Authenticate": 'Bearer realm="fedbus"'}


class Access:
    """The gateway's door; use ``following`` while it serves."""

    def __init__(self, settings: GatewaySettings) -> None:
        join_token = settings.join_token.get_secret_value() if settings.join_token else ""
        self.table = AccessTable(join_token, open_without=_is_loopback(settings.host))
        self._failures = Failures(settings.max_failures)

    @contextlib.asynccontextmanager
    async def following(self, bus: Bus) -> AsyncIterator[None]:
        """Knows the operator's tokens from the start of the block to its end."""
        known = asyncio.Event()
        async with background(self._follow(bus, known)), background(self._expire()):
            await known.wait()
            if self.table.is_open:
                log.warning("no join token is set: everybody on this machine may do everything")
            yield

    def check(self, token: str, role: Role, address: str) -> Grant:
        """The grant of a token that comes from this address.

        Raises:
            AccessRefusedError: the token does not allow ``role``, or too many wrong ones came from there (code
                ``too_many_failures``).
        """
        self.refuse_guessers(address)
        try:
            return self.table.check(token, role, datetime.now(UTC))
        except AccessRefusedError as error:
            # Who says nothing guesses nothing.
            if error.code == "token" and token:
                self._failures.count(address, time.monotonic())
                log.info("refused %s: %s", escaped(address), error.message)
            raise

    def refuse_guessers(self, address: str) -> None:
        """Turns away an address that sent many wrong tokens a moment ago; raises as ``check``."""
        if wait_s := self._failures.wait_s(address, time.monotonic()):
            raise AccessRefusedError(
                "too_many_failures", f"too many wrong tokens; come back in {math.ceil(wait_s)} seconds"
            )

    def guard(self, role: Role, app: ASGIApp) -> ASGIApp:
        """``app`` for those only whose ``Authorization: Bearer`` token allows ``role``."""
        return _Guarded(self, role, app)

    async def _follow(self, bus: Bus, known: asyncio.Event) -> None:
        async for records in bus.tokens.changes():
            self.table.update(records, datetime.now(UTC))
            known.set()

    async def _expire(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            self.table.expire(datetime.now(UTC))


class _Guarded:
    # A class, because the router takes a function for something else.
    def __init__(self, access: Access, role: Role, app: ASGIApp) -> None:
        self._access = access
        self._role = role
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            scope[GRANT] = self._access.check(_bearer(scope), self._role, address_of(scope))
        except AccessRefusedError as error:
            await _refusal(error)(scope, receive, send)
            return
        await self._app(scope, receive, send)


def address_of(scope: Scope) -> str:
    """The address that a request comes from."""
    client = scope.get("client")
    return str(client[0]) if client else "unknown"


def _bearer(scope: Scope) -> str:
    scheme, _, token = Headers(scope=scope).get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def _refusal(error: AccessRefusedError) -> Response:
    text = f"{error.message}\n"
    if error.code == "role":
        return PlainTextResponse(text, 403)
    if error.code == "too_many_failures":
        return PlainTextResponse(text, 429, {"Retry-After": "60"})
    return PlainTextResponse(text, 401, _CHALLENGE)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
