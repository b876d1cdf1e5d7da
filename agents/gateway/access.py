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

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from agents.core.exchange.access import AccessRefusedError, AccessTable, Failures, Grant, Pace
from agents.gateway.settings import GatewaySettings
from agents.runtime.tasks import background
from bus.broker.tokens import LOOK_EVERY_S
from bus.client import Bus
from bus.process.logs import escaped
from bus.words.tokens import Role, id_of

log = logging.getLogger(__name__)
GRANT = "fedbus.grant"
"""Where a request's scope holds the ``Grant`` under which it is served."""
ASKS_PER_S = 5.0
"""How often the broker is asked for a token that nobody knows yet; what is not asked for comes with the next look."""
ANSWER_S = 2.0
_CHALLENGE = {"WWW-Authenticate": 'Bearer realm="fedbus"'}


class Access:
    """The gateway's door; use ``following`` while it serves."""

    def __init__(self, settings: GatewaySettings) -> None:
        join_token = settings.join_token.get_secret_value() if settings.join_token else ""
        self.table = AccessTable(join_token, open_without=is_loopback(settings.host))
        self._failures = Failures(settings.max_failures)
        self._asking = Pace(ASKS_PER_S)
        self._bus: Bus | None = None

    @contextlib.asynccontextmanager
    async def following(self, bus: Bus) -> AsyncIterator[None]:
        """Knows the operator's tokens from the start of the block to its end."""
        known = asyncio.Event()
        self._bus = bus
        async with background(self._follow(bus, known)), background(self._expire()):
            await known.wait()
            if self.table.is_open:
                log.warning("no join token is set: everybody on this machine may do everything")
            yield

    async def check(self, token: str, role: Role, address: str) -> Grant:
        """The grant of a token that comes from this address.

        After many wrong ones from there the right one still gets in, unless it is one that could be guessed; whatever
        else comes hears the same.

        Raises:
            AccessRefusedError: the token does not allow ``role``, or too many wrong ones came from there (code
                ``too_many_failures``).
        """
        wait_s = self._failures.wait_s(address, time.monotonic())
        guessed = wait_s > 0
        if not guessed and self.table.is_unknown(token):
            await self._ask_for(token)
        try:
            return self.table.check(token, role, datetime.now(UTC), beside_guessers=guessed)
        except AccessRefusedError as error:
            if error.code != "token":
                raise
            if guessed:
                raise AccessRefusedError(
                    "too_many_failures", f"too many wrong tokens; come back in {math.ceil(wait_s)} seconds"
                ) from None
            # Who says nothing guesses nothing.
            if token:
                self._failures.count(address, time.monotonic())
                log.info("refused %s: %s", escaped(address), error.message)
            raise

    async def _ask_for(self, token: str) -> None:
        """Looks whether the operator made a token since the last look; guessers cannot have it look often."""
        now = time.monotonic()
        if self._bus is None or self.table.is_open or self._asking.delay(0, now) > 0:
            return
        self._asking.delay(1, now)
        try:
            async with asyncio.timeout(ANSWER_S):
                record = await self._bus.tokens.find(id_of(token))
        except TimeoutError:
            return
        if record is not None:
            self.table.learn(record, datetime.now(UTC))

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
        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.setdefault("Cache-Control", "private, no-cache")
                headers.add_vary_header("Authorization")
            await send(message)

        try:
            scope[GRANT] = await self._access.check(_bearer(scope), self._role, address_of(scope))
        except AccessRefusedError as error:
            await refusal(error)(scope, receive, answer)
            return
        await self._app(scope, receive, answer)


def address_of(scope: Scope) -> str:
    """The address that a request comes from."""
    client = scope.get("client")
    return str(client[0]) if client else "unknown"


def _bearer(scope: Scope) -> str:
    scheme, _, token = Headers(scope=scope).get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


_STATUS = {"role": 403, "too_many_failures": 429, "too_many_feeds": 429}


def refusal(error: AccessRefusedError) -> Response:
    """What somebody is answered who may not do this; the code stands at the end."""
    status = _STATUS.get(error.code, 401)
    headers = {401: _CHALLENGE, 429: {"Retry-After": "60"}}.get(status)
    return PlainTextResponse(f"{error.message} [{error.code}]\n", status, headers)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches who listens there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
