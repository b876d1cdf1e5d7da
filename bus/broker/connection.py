"""One connection to the broker that waits for it, survives its restarts and says clearly what is wrong."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Protocol, TypeVar

import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import RawStreamMsg

from bus.broker.answers import OUTAGES, is_outage, reason, refusal
from bus.broker.attempts import Attempt, AttemptingClient, current
from bus.broker.settings import BusSettings
from bus.broker.stopping import briefly, cancellable
from bus.errors import BrokerUnavailableError, PermissionDeniedError

T = TypeVar("T")
REMIND_S = 10.0
LEAVE_S = 5.0
"""How long one broker of several may give no answer before another one is tried: it may be cut off from the rest."""
_FIRST_RETRY_S, _LAST_RETRY_S = 0.05, 1.0
_DENIED = re.compile(r'permissions violation for publish to "([^"]+)"', re.IGNORECASE)
log = logging.getLogger(__name__)


class Wakeable(Protocol):
    """Something that waits for messages and must look up when the connection was lost."""

    def wake(self) -> None:
        """Look at ``Connection.losses`` now."""


class Connection:
    """A NATS client and what the rest of ``bus`` needs to know of its state.

    Attributes:
        nc: the client, connected once ``connected()`` returns.
        js: its JetStream context.
        losses: how often the connection was lost; requests made before a loss get no answer.
        retries: how often a request was made again.
        user: as whom it logged in by name.
        unreadable: the sequences of events that readers found no broker to have: its store is damaged.
        on_denied: called with a subject, in lower case, that the broker does not let this user publish on.
    """

    def __init__(self) -> None:
        self.nc: Client = AttemptingClient()
        self.js: JetStreamContext = self.nc.jetstream()
        self.losses = 0
        self.retries = 0
        self.user: str | None = None
        self.unreadable: set[int] = set()
        # Whose attempt it was is told by its own error.
        self.on_denied: Callable[[str], object] = lambda _: None
        self._attempts: list[Attempt] = []
        self._silent_since: float | None = None
        self._up = asyncio.Event()
        self._over: BrokerUnavailableError | None = None
        self._waiting: set[Wakeable] = set()
        self._first_error: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._last_error: Exception | None = None

    async def open(
        self, settings: BusSettings, *, name: str, wait_s: float | None, on_waiting: Callable[[str], object] | None
    ) -> None:
        """Connects, waiting for the broker for ever or for ``wait_s`` seconds.

        Raises:
            BrokerUnavailableError: no broker in time, or it refuses these credentials or this TLS set-up.
        """
        try:
            tls = settings.tls()
        except OSError as error:
            raise BrokerUnavailableError(
                f"cannot read the TLS files: {error}", hint="check NATS_CA, NATS_CERT and NATS_KEY"
            ) from None
        self.user = settings.user
        connecting = asyncio.create_task(self._connect(settings, name, tls))
        try:
            async with asyncio.timeout(wait_s):
                await asyncio.wait([connecting, self._first_error], return_when=asyncio.FIRST_COMPLETED)
                while not connecting.done():
                    self._raise_if_refused(settings)
                    if on_waiting is not None:
                        on_waiting(f"waiting for the broker at {settings.place}: {reason(self._last_error)}")
                    await self._remind(connecting)
            await connecting
        except TimeoutError:
            raise BrokerUnavailableError(
                f"no broker at {settings.place} within {wait_s:g} s: {reason(self._last_error)}",
                hint="start one, or set NATS_URL to where it listens",
            ) from None
        except (nats.errors.Error, ValueError, OSError) as error:
            # Its text may hold what it is about: an address with a login, or credentials.
            raise BrokerUnavailableError(
                f"cannot connect to {settings.place}: {type(error).__name__}",
                hint=refusal(error) or "check that NATS_URL is nats://HOST:PORT, and the file of NATS_CREDS",
            ) from None
        finally:
            if not self.nc.is_connected:
                connecting.cancel()
                await asyncio.gather(connecting, return_exceptions=True)
                # A client that never began to connect has nothing to close, and says so with an assertion (2.16).
                with contextlib.suppress(AssertionError):
                    await self.nc.close()
        self._up.set()

    async def _connect(self, settings: BusSettings, name: str, tls: ssl.SSLContext | None) -> None:
        await self.nc.connect(
            settings.servers,
            name=name,
            error_cb=self._on_error,
            disconnected_cb=self._on_lost,
            reconnected_cb=self._on_found,
            closed_cb=self._on_closed,
            max_reconnect_attempts=-1,
            reconnect_time_wait=0.25,  # type: ignore[arg-type]  # any number of seconds works
            connect_timeout=5,
            # A half-open connection is noticed after three of these, before a reader gives up (``objects.STALL_S``).
            ping_interval=3,
            max_outstanding_pings=2,
            drain_timeout=5,
            **settings.options(tls),
        )

    async def _remind(self, connecting: asyncio.Task[None]) -> None:
        """Waits until it is time to say again that the broker is away, or an error is final."""
        for _ in range(int(REMIND_S / 0.25)):
            if connecting.done() or refusal(self._last_error):
                return
            await asyncio.wait({connecting}, timeout=0.25)

    def _raise_if_refused(self, settings: BusSettings) -> None:
        if hint := refusal(self._last_error):
            raise BrokerUnavailableError(
                f"the broker at {settings.place} refuses the connection: {reason(self._last_error)}", hint=hint
            )

    async def close(self) -> None:
        """Sends what is waiting and closes; a broker that is away is not waited for."""
        if self.is_up:
            # And no drain: nobody reads any more, and one that is cut short logs a traceback (2.16).
            await briefly(self.nc.flush())
        # Its last words may meet a socket that the broker's end has closed.
        await briefly(self.nc.close())

    async def connected(self) -> None:
        """Waits, for ever if need be, until the broker is there.

        Raises:
            BrokerUnavailableError: the broker closed the connection for good.
        """
        await self._up.wait()
        if self._over is not None:
            raise self._over

    @property
    def is_up(self) -> bool:
        """Whether the broker can be reached now."""
        return self._up.is_set() and self._over is None

    async def persist(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """The result of ``attempt``, made again and again until the broker gives an answer.

        The attempt must be safe to repeat: an answer can be lost after its effect.

        Raises:
            BrokerUnavailableError: the broker closed the connection for good.
            PermissionDeniedError: the broker does not let this user ask.
            nats.js.errors.APIError: the broker's answer is an error.
        """
        delay, warned = _FIRST_RETRY_S, False
        while True:
            await self.connected()
            this = Attempt()
            self._attempts.append(this)
            outer = current.set(this)
            try:
                answer = await cancellable(attempt())
                self._silent_since = None
                return answer
            except (*OUTAGES, nats.js.errors.APIError) as error:
                if not is_outage(error):
                    self._silent_since = None
                    raise
                self.retries += 1
                # What is denied gets no answer; the broker says so beside.
                if this.denied is not None:
                    raise PermissionDeniedError(
                        f"this user may not publish on {this.denied}",
                        hint="log in to the broker as the role that may",
                    ) from None
                if delay >= _LAST_RETRY_S and not warned:
                    warned = True
                    log.warning("the broker does not answer (%s); trying on", reason(error))
            except nats.errors.ConnectionClosedError:
                if self.nc.is_closed:
                    await self.connected()
                    raise BrokerUnavailableError("the connection to the broker is closed") from None
            finally:
                current.reset(outer)
                self._attempts.remove(this)
            await self._leave_if_silent()
            await asyncio.sleep(delay)
            delay = min(_LAST_RETRY_S, 2 * delay)

    async def _leave_if_silent(self) -> None:
        """Goes to another broker of several when this one has had no answer to anything for a while."""
        now = time.monotonic()
        if self._silent_since is None:
            self._silent_since = now
        elif now - self._silent_since > LEAVE_S and len(self.nc.servers) > 1 and self.is_up:
            log.warning("this broker gives no answers; trying another one")
            self._silent_since = None
            await self.nc.force_reconnect()

    async def confirmed(self) -> None:
        """Waits until the broker has taken in all that was sent before: whoever subscribed is heard by everybody.

        The answers to one's own requests need no such wait: they are asked for behind the subscription.
        """
        # A PING overtakes what still waits to be written (nats-py 2.16): the first one only sees to it that this is
        # written before its answer can come, and the second follows it.
        for _ in range(2):
            await self.persist(self.nc.flush)

    async def last_message(self, stream: str, subject: str) -> RawStreamMsg | None:
        """The newest message on ``subject``, or nothing.

        The stream's leader is asked: a direct get may be answered by a replica that is behind, and whoever decides
        from what is not there yet decides wrongly. It may be what the broker copied there (``direct_get.was_copied``):
        that has a place, and says nothing.
        """
        try:
            return await self.persist(lambda: self.js.get_last_msg(stream, subject))
        except nats.js.errors.NotFoundError:
            return None

    @contextlib.contextmanager
    def waking(self, sleeper: Wakeable) -> Any:
        """Wakes ``sleeper`` whenever the connection is lost, found or closed."""
        self._waiting.add(sleeper)
        try:
            yield
        finally:
            self._waiting.discard(sleeper)

    def _wake_all(self) -> None:
        for sleeper in tuple(self._waiting):
            sleeper.wake()

    async def _on_error(self, error: Exception) -> None:
        self._last_error = error
        if denied := _DENIED.search(str(error)):
            # nats-py gives it in lower case (2.16).
            subject = denied[1].lower()
            for attempt in self._attempts:
                attempt.denied = next((one for one in attempt.subjects if one.lower() == subject), attempt.denied)
            self.on_denied(subject)
        if not self._first_error.done():
            self._first_error.set_result(None)
        refused = bool(refusal(error)) and self.losses > 0
        log.log(logging.WARNING if refused else logging.DEBUG, "broker: %s %s", reason(error), refusal(error))

    async def _on_lost(self) -> None:
        self.losses += 1
        self._up.clear()
        if not self.nc.is_closed:
            log.warning("lost the broker; reconnecting")
        self._wake_all()

    async def _on_found(self) -> None:
        log.warning("reconnected to the broker")
        self._up.set()
        self._wake_all()

    async def _on_closed(self) -> None:
        self._over = BrokerUnavailableError(
            f"the connection to the broker is closed: {reason(self.nc.last_error)}",
            hint=refusal(self.nc.last_error) or "start the agent again",
        )
        self._up.set()
        self._wake_all()


@contextlib.asynccontextmanager
async def connection(
    settings: BusSettings, *, name: str, wait_s: float | None, on_waiting: Callable[[str], object] | None
) -> AsyncIterator[Connection]:
    """An open connection, flushed and closed at the end."""
    link = Connection()
    await link.open(settings, name=name, wait_s=wait_s, on_waiting=on_waiting)
    try:
        yield link
    finally:
        await link.close()
