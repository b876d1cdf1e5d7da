"""``/runs/<run>/events``: a run's events and live progress as Server-Sent Events, to be joined late and resumed."""

from __future__ import annotations

import asyncio
import re

from starlette.datastructures import Headers, QueryParams
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from agents.core.exchange.access import AccessRefusedError, Grant
from agents.gateway.access import GRANT, refusal
from agents.gateway.hub import Hub
from agents.runtime.tasks import background
from agents.words.events import Progress, RunStarted
from bus.client import CaughtUp
from bus.words.subjects import events_of, filter_of

KEEP_ALIVE_S = 15.0
CAPACITY = 256
_HEADERS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]
_RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_SEQUENCE = re.compile(r"\d{1,15}")


class EventFeed:
    """The endpoint, as a bare ASGI application: an answer that lasts as long as its reader.

    It ends with its reader's token. A slow reader gets its events late; progress that it cannot take is dropped.
    """

    def __init__(self, hub: Hub, stop: asyncio.Event) -> None:
        self._hub = hub
        self._bus = hub.bus
        self._max_watchers = hub.settings.max_watchers
        self._max_token_watchers = hub.settings.max_token_watchers
        self._stop = stop
        self.watchers = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one GET; to HEAD, what GET would begin with."""
        run = scope["path_params"]["run"]
        since = (
            Headers(scope=scope).get("last-event-id") or QueryParams(scope.get("query_string", b"")).get("since") or "0"
        )
        if not _RUN.fullmatch(run) or not _SEQUENCE.fullmatch(since):
            await PlainTextResponse("since and Last-Event-ID are stream sequences\n", 400)(scope, receive, send)
        elif self.watchers >= self._max_watchers:
            await PlainTextResponse("too many watchers\n", 503, {"Retry-After": "10"})(scope, receive, send)
        else:
            self.watchers += 1
            grant: Grant = scope[GRANT]
            ended = asyncio.Event()
            try:
                with grant.watching(self._max_token_watchers), grant.ending(lambda _: ended.set()):
                    # The stream is asked, because a run that began a moment ago may not have been read yet.
                    if await self._bus.find(filter_of(RunStarted, run=run)) is None:
                        await PlainTextResponse(f"there is no run {run} [run_unknown]\n", 404)(scope, receive, send)
                        return
                    await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
                    if scope["method"] != "HEAD":
                        await self._feed(run, int(since), ended, receive, send)
                    else:
                        await send({"type": "http.response.body", "body": b""})
            except AccessRefusedError as error:
                await refusal(error)(scope, receive, send)
            finally:
                self.watchers -= 1

    async def _feed(self, run: str, since: int, ended: asyncio.Event, receive: Receive, send: Send) -> None:
        queue: asyncio.Queue[str] = asyncio.Queue(CAPACITY)
        async with (
            background(self._events(run, since, queue)),
            background(self._progress(run, queue)),
            background(_write(queue, send)),
        ):
            gone = asyncio.create_task(_gone(receive))
            ends = {gone, asyncio.create_task(self._stop.wait()), asyncio.create_task(ended.wait())}
            try:
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for end in ends:
                    end.cancel()
        if not gone.done() or gone.cancelled():
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _events(self, run: str, since: int, queue: asyncio.Queue[str]) -> None:
        async with self._bus.follow(events_of(run), after=since) as items:
            async for item in items:
                if isinstance(item, CaughtUp):
                    continue
                # A reader may ask for the objects of what it reads: first it must be known which of them are secret.
                await self._hub.reached(item.sequence, within_s=60)
                await queue.put(f"id: {item.sequence}\ndata: {item.event.to_json().decode()}\n\n")

    async def _progress(self, run: str, queue: asyncio.Queue[str]) -> None:
        async with self._bus.hear(Progress, run=run) as items:
            async for progress in items:
                # The last places of the queue are kept for events.
                if queue.qsize() < CAPACITY // 2:
                    queue.put_nowait(f"event: progress\ndata: {progress.model_dump_json()}\n\n")


async def _write(queue: asyncio.Queue[str], send: Send) -> None:
    await send({"type": "http.response.body", "body": b"retry: 2000\n\n", "more_body": True})
    while True:
        try:
            async with asyncio.timeout(KEEP_ALIVE_S):
                text = await queue.get()
        except TimeoutError:
            text = ": still here\n\n"
        parts = [text]
        while not queue.empty():
            parts.append(queue.get_nowait())
        await send({"type": "http.response.body", "body": "".join(parts).encode(), "more_body": True})


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
