"""The client's life: connect, take tasks, train, upload, and come back after every cut where it was."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from dataclasses import dataclass, field

import websockets
from websockets.asyncio.client import ClientConnection, connect

from agents.client.address import Address
from agents.client.greeting import ANSWER_S, greet, text_of
from agents.client.trainer import Finished, TaskGivenUpError, Trainer
from agents.client.uploader import Uploader
from agents.core.exchange.messages import (
    MAX_CHUNK_BYTES,
    MAX_SLOTS,
    MAX_TEXT_BYTES,
    PROTOCOL_VERSION,
    Assignment,
    ErrorMessage,
    Hello,
    Leave,
    Ping,
    ProgressMessage,
    ProtocolError,
    Ready,
    TaskFailed,
    TaskRevoked,
    UploadAccepted,
    UploadOffset,
    UploadRejected,
    parse_server_message,
)
from agents.core.learning.task import TaskProgress
from agents.runtime.reminding import Reminder
from agents.runtime.tasks import background
from agents.words.events import NO_FAULT
from bus.errors import FedbusError
from bus.process.crash_points import crash_point
from bus.process.failures import raise_first
from bus.process.logs import without_login
from bus.words.values import Frozen

SILENT_HEARTBEATS = 3
"""The gateway counts a client as gone after this many silent heartbeats, and the client the gateway."""
SLOTS = 2
CLOSE_S = 2.0
FIRST_PAUSE_S, LAST_PAUSE_S = 0.1, 5.0
PROGRESS_EVERY_S = 0.2
log = logging.getLogger(__name__)


@dataclass
class Work:
    """A task in hand: what it gave when it is done, and whether it was taken back."""

    assignment: Assignment
    revoked: bool = False
    trained: bool = False
    finished: Finished | None = None
    progress_at: float = field(default=0.0)


class Client:
    """One client; ``run`` it until it is cancelled.

    It keeps up to ``SLOTS`` tasks in hand, so that the next one is there when one is done, and uploads an update while
    the next task trains.
    """

    def __init__(self, gateway: Address, name: str, trainer: Trainer, *, says_goodbye: bool = True) -> None:
        self._says_goodbye = says_goodbye
        self._gateway = gateway
        self._url = gateway.socket_url
        self._tls = gateway.tls()
        self._name = name
        self._trainer = trainer
        self._held: dict[str, Work] = {}
        self._to_train: asyncio.Queue[Work] = asyncio.Queue()
        self._outbox: asyncio.Queue[Frozen] = asyncio.Queue()
        self._asked = 0
        self._uploader = Uploader(ANSWER_S)
        self._chunk_bytes = MAX_CHUNK_BYTES
        self._changed = asyncio.Event()
        self._reminder = Reminder(log.warning)
        self.accepted = 0

    async def run(self) -> None:
        """Works for ever, through every loss of the gateway.

        Raises:
            GatewayRefusedError: wrong token or name, or another version of the protocol.
        """
        try:
            async with background(self._train()):
                await self._stay_connected()
        finally:
            # A thread that still trains sees it and ends, too.
            for work in self._held.values():
                work.revoked = True

    async def _stay_connected(self) -> None:
        pause = FIRST_PAUSE_S
        while True:
            began = time.monotonic()
            try:
                await self._connected()
            except (OSError, TimeoutError, websockets.WebSocketException) as error:
                reason = without_login(str(error)) or type(error).__name__
                self._reminder.waits(f"no gateway at {without_login(self._url)}: {reason}; trying again")
            except ProtocolError as error:
                self._reminder.waits(f"the gateway said something strange: {error.message}")
            if time.monotonic() - began > LAST_PAUSE_S:
                pause = FIRST_PAUSE_S
            # Spread out, so that many clients do not come back at the same moment.
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(LAST_PAUSE_S, pause * 2)

    async def _connected(self) -> None:
        """One connection in a task of its own: a stop that comes together with its loss must not drown in it.

        A task group that is cancelled while one of its tasks fails only tells of the failure (Python 3.11).
        """
        connection = asyncio.create_task(self._connect())
        try:
            await asyncio.wait([connection])
        finally:
            connection.cancel()
            await asyncio.gather(connection, return_exceptions=True)
        connection.result()

    async def _connect(self) -> None:
        async with connect(
            self._url, ssl=self._tls, compression=None, max_size=2 * MAX_TEXT_BYTES, close_timeout=CLOSE_S
        ) as socket:
            await self._converse(socket)

    async def _converse(self, socket: ClientConnection) -> None:
        """One connection, from hello to its end."""
        hello = Hello(
            protocol=PROTOCOL_VERSION,
            token=self._gateway.token,
            client=self._name,
            engine=self._trainer.engine,
            resume=tuple(self._held),
        )
        welcome = await greet(socket, hello)
        for lease in set(self._held) - set(welcome.resumed):
            self._drop(lease)
        self._asked = 0
        self._uploader.forget()
        self._chunk_bytes = min(welcome.chunk_bytes, MAX_CHUNK_BYTES)
        self._outbox = asyncio.Queue()
        self._reminder.over()
        log.info("joined %s with %d tasks in hand", without_login(self._url), len(self._held))
        self._ask()
        with contextlib.suppress(_ConversationOver):
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._read(socket, SILENT_HEARTBEATS * welcome.heartbeat_s))
                    group.create_task(self._write(socket))
                    group.create_task(self._upload_all(socket))
                    group.create_task(_ping(self._outbox, welcome.heartbeat_s))
            except BaseExceptionGroup as failures:
                raise_first(failures)
            except asyncio.CancelledError:
                if self._says_goodbye:
                    await _say_goodbye(socket)
                raise

    async def _read(self, socket: ClientConnection, patience_s: float) -> None:
        while True:
            try:
                async with asyncio.timeout(patience_s):
                    message = parse_server_message(text_of(await socket.recv()))
            except websockets.ConnectionClosedOK:
                raise _ConversationOver from None
            match message:
                case Assignment():
                    self._asked = max(0, self._asked - 1)
                    crash_point("client.assigned")
                    work = Work(message)
                    self._held[message.lease] = work
                    self._to_train.put_nowait(work)
                case UploadOffset() | UploadAccepted() | UploadRejected():
                    self._uploader.hear(message)
                case TaskRevoked():
                    log.info("task taken back: %s", message.reason)
                    self._drop(message.lease)
                case ErrorMessage():
                    log.warning("the gateway refused a message: %s (%s)", message.message, message.code)
                case _:
                    pass

    async def _write(self, socket: ClientConnection) -> None:
        while True:
            await socket.send((await self._outbox.get()).model_dump_json())

    def _ask(self) -> None:
        """Asks for as many tasks as there is room for."""
        in_hand = sum(not work.trained for work in self._held.values())
        room = min(SLOTS - in_hand, MAX_SLOTS - len(self._held))
        for _ in range(room - self._asked):
            self._outbox.put_nowait(Ready())
            self._asked += 1

    def _drop(self, lease: str) -> None:
        if (work := self._held.pop(lease, None)) is not None:
            work.revoked = True
        self._changed.set()
        self._ask()

    async def _train(self) -> None:
        """Does one task after the other; what the next one needs is fetched while this one trains."""
        while True:
            work = await self._to_train.get()
            if work.revoked:
                continue
            try:
                await self._do(work)
            except TaskGivenUpError:
                pass
            except FedbusError as error:
                log.warning("cannot do the task of %s: %s", work.assignment.task.user, error.message)
                self._outbox.put_nowait(TaskFailed(lease=work.assignment.lease, reason=error.message[:500]))
                self._drop(work.assignment.lease)
            work.trained = True
            self._changed.set()
            self._ask()

    async def _do(self, work: Work) -> None:
        loop = asyncio.get_running_loop()

        def progress(now: TaskProgress) -> None:
            if work.revoked:
                raise TaskGivenUpError("the task was taken back")
            if time.monotonic() - work.progress_at >= PROGRESS_EVERY_S:
                work.progress_at = time.monotonic()
                loop.call_soon_threadsafe(self._report, work, now)

        async with background(self._prepare_next()):
            work.finished = await self._trainer.run(work.assignment.task, progress)
        crash_point("client.trained")

    async def _prepare_next(self) -> None:
        for work in list(self._held.values()):
            if not work.trained and not work.revoked:
                with contextlib.suppress(FedbusError):
                    # Whatever fails here fails again, and is told, when it is the task's turn.
                    await self._trainer.prepare(work.assignment.task)

    def _report(self, work: Work, now: TaskProgress) -> None:
        self._outbox.put_nowait(
            ProgressMessage(
                lease=work.assignment.lease,
                phase=now.phase,
                images_seen=now.images_seen,
                mismatched_images=now.mismatched_images,
                trained_images=now.trained_images,
                loss=now.loss,
            )
        )

    async def _upload_all(self, socket: ClientConnection) -> None:
        """Uploads what is finished, one update after the other."""
        while True:
            self._changed.clear()
            waiting = [work for work in self._held.values() if work.finished is not None]
            if not waiting:
                await self._changed.wait()
            for work in waiting:
                if work.finished is not None and not work.revoked:
                    await self._upload(socket, work, work.finished)

    async def _upload(self, socket: ClientConnection, work: Work, finished: Finished) -> None:
        lease = work.assignment.lease
        answer = await self._uploader.upload(
            socket, lease, finished, chunk_bytes=self._chunk_bytes, given_up=lambda: work.revoked
        )
        if isinstance(answer, UploadAccepted):
            self.accepted += 1
        elif isinstance(answer, UploadRejected) and answer.code in NO_FAULT:
            log.info("somebody else was faster with %s, or its round is over", work.assignment.task.user)
        elif isinstance(answer, UploadRejected):
            log.warning("update of %s rejected: %s (%s)", work.assignment.task.user, answer.reason, answer.code)
        self._drop(lease)


class _ConversationOver(Exception):
    """The gateway closed the connection in good order."""


async def _ping(outbox: asyncio.Queue[Frozen], every_s: float) -> None:
    while True:
        await asyncio.sleep(every_s)
        outbox.put_nowait(Ping())


async def _say_goodbye(socket: ClientConnection) -> None:
    """Has the tasks given to others at once: this client stops, and will not come back for them."""
    with contextlib.suppress(OSError, TimeoutError, websockets.WebSocketException):
        async with asyncio.timeout(CLOSE_S):
            await socket.send(Leave().model_dump_json())
