"""Publishes to JetStream without waiting for each answer in turn; every future ends, with an answer or an error."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import nats.errors
import nats.js.errors
from nats.aio.msg import Msg

from bus.broker.connection import Connection
from bus.errors import PermissionDeniedError

_NO_RESPONDERS = "503"
_LAST_ANSWER_S = 10.0


@dataclass(frozen=True)
class Ack:
    """The broker has the message; ``duplicate`` when it had it before."""

    sequence: int
    duplicate: bool


class Pipeline:
    """One inbox for the answers to many messages.

    nats-py has ``publish_async`` for this, but a message that the broker refuses never settles its future (2.16).
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._prefix = connection.nc.new_inbox() + "."
        self._numbers = itertools.count()
        self._waiting: dict[str, tuple[str, asyncio.Future[Ack]]] = {}
        self._losses = 0
        self._open = contextlib.ExitStack()
        self._subscribing = asyncio.Lock()
        self._subscribed = False

    async def send(self, subject: str, body: bytes, headers: dict[str, str] | None = None) -> asyncio.Future[Ack]:
        """Publishes now and returns a future of the answer: an Ack, an APIError, a PermissionDeniedError, or an
        outage (another ``nats.errors.Error``).

        Wait for it with a deadline, and ``forget`` it when that has passed.
        """
        if not self._subscribed:
            await self._subscribe()
        token = str(next(self._numbers))
        future: asyncio.Future[Ack] = asyncio.get_running_loop().create_future()
        self._waiting[token] = subject, future
        task = asyncio.current_task()
        cancels = task.cancelling() if task else 0
        try:
            await self._connection.nc.publish(subject, body, self._prefix + token, headers)
        except nats.errors.Error as error:
            del self._waiting[token]
            future.set_exception(error)
        if task and task.cancelling() > cancels:
            # nats-py swallows a cancellation while it flushes a full buffer (2.16). What was sent is settled first, so
            # that whoever cleans up knows that it is there.
            await asyncio.wait([future], timeout=_LAST_ANSWER_S)
            self.forget([future])
            raise asyncio.CancelledError
        return future

    def forget(self, futures: Iterable[asyncio.Future[Ack]]) -> None:
        """Gives up on the answers that have not come."""
        for future in futures:
            if not future.cancel() and not future.cancelled():
                # A failure that nobody asks for must be looked at, or asyncio complains.
                future.exception()
        self._drop_settled()

    def wake(self) -> None:
        """After a lost connection: answers to what was sent before do not come."""
        if self._losses != self._connection.losses:
            self._losses = self._connection.losses
            self._fail_all(nats.errors.StaleConnectionError())

    def _denied(self, denied: str) -> None:
        """Ends the futures of this subject, which is in lower case."""
        for subject, future in self._waiting.values():
            if not future.done() and subject.lower() == denied:
                hint = "log in to the broker as the role that says this"
                future.set_exception(PermissionDeniedError(f"this user may not publish on {subject}", hint=hint))
        self._drop_settled()

    def _fail_all(self, error: Exception) -> None:
        for _, future in self._waiting.values():
            if not future.done():
                future.set_exception(error)
        self._drop_settled()

    def _drop_settled(self) -> None:
        self._waiting = {token: waiting for token, waiting in self._waiting.items() if not waiting[1].done()}

    async def _subscribe(self) -> None:
        async with self._subscribing:
            if not self._subscribed:
                await self._connection.nc.subscribe(f"{self._prefix}*", cb=self._receive)
                # For as long as the connection lives.
                self._open.enter_context(self._connection.waking(self))
                self._connection.on_denied = self._denied
                self._losses = self._connection.losses
                self._subscribed = True

    async def _receive(self, message: Msg) -> None:
        _, future = self._waiting.pop(message.subject[len(self._prefix) :], ("", None))
        if future is None or future.done():
            return
        if message.headers and message.headers.get("Status") == _NO_RESPONDERS:
            future.set_exception(nats.js.errors.NoStreamResponseError())
            return
        answer = json.loads(message.data)
        if "error" in answer:
            future.set_exception(_api_error(answer["error"]))
        else:
            future.set_result(Ack(answer["seq"], answer.get("duplicate", False)))


def _api_error(fields: dict[str, Any]) -> Exception:
    """The error of the right class; nats-py only knows how to raise it."""
    try:
        nats.js.errors.APIError.from_error(fields)
    except nats.js.errors.APIError as error:
        return error
    raise AssertionError("from_error returned")
