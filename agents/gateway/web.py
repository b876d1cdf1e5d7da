"""The gateway as one ASGI application: page, objects, feeds, health and figures, with their safety headers."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial

from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Mount, Route, WebSocketRoute, request_response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from agents.gateway.event_feed import EventFeed
from agents.gateway.front import Front, own_names
from agents.gateway.hub import Hub
from agents.gateway.objects import Objects
from agents.gateway.websocket import ClientSocket
from agents.runtime.metrics import Telemetry
from agents.runtime.round_figures import Figure, Source, expose

NOT_BUILT = """<!doctype html><meta charset="utf-8"><title>fedbus</title>
<h1>The page is not built</h1>
<p>The gateway works and native clients can train, but there is no page in {directory}.</p>
<p>Build it: <code>npm ci &amp;&amp; npm run build</code> in <code>browser_client/</code>,
or set <code>FEDBUS_GATEWAY_STATIC_DIR</code>.</p>
"""
CONTENT_POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self'; connect-src 'self'; "
    "img-src 'self'; style-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
SAFETY = {
    "Content-Security-Policy": CONTENT_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
ISOLATION = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
}
ENCRYPTED = {"Strict-Transport-Security": "max-age=31536000"}


class WithHeaders:
    """Adds headers to every HTTP answer of ``app``; what has no other caching rule is asked for again each time."""

    def __init__(self, app: ASGIApp, headers: Mapping[str, str]) -> None:
        self._app = app
        self._headers = headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(self._headers)
                headers.setdefault("Cache-Control", "no-cache")
            await send(message)

        await self._app(scope, receive, with_headers if scope["type"] == "http" else send)


def figures(hub: Hub, objects: Objects, feed: EventFeed) -> list[Figure]:
    """What the gateway knows of itself, beside what all agents show."""
    now = hub.conversation.statistics()
    gauges = {
        "clients": (now.clients, "connected clients"),
        "leases": (now.leases, "tasks in clients' hands"),
        "ready": (now.ready, "tasks that clients wait for"),
        "spooled_bytes": (now.spooled_bytes, "announced bytes of unfinished uploads"),
        "watchers": (feed.watchers, "open event feeds"),
        "sequence": (hub.runs.sequence, "stream sequence that the gateway has read"),
    }
    counters = {
        "granted": (now.granted, "tasks handed to clients"),
        "returned": (now.returned, "tasks that went back to the pool"),
        "accepted": (now.accepted, "updates accepted"),
        "rejected": (now.rejected, "updates rejected"),
        "unwritten": (now.unwritten, "rejections that were counted and not written"),
        "uploaded_bytes": (hub.spool.received_bytes, "bytes of updates that clients sent"),
        "served_bytes": (objects.served_bytes, "bytes of objects served"),
    }
    return [
        *(Figure(f"gateway_{name}", text, value) for name, (value, text) in gauges.items()),
        *(Figure(f"gateway_{name}", text, value, counter=True) for name, (value, text) in counters.items()),
    ]


def application(hub: Hub, stop: asyncio.Event) -> ASGIApp:
    """The whole application around one hub; ``stop`` ends its event feeds."""
    settings = hub.settings
    objects = Objects(hub)
    feed = EventFeed(hub, stop)
    source = Source(lambda: figures(hub, objects, feed), lambda: hub.is_caught_up)
    expose(source)

    async def runs(_: Request) -> Response:
        try:
            await hub.recalled()
        except TimeoutError:
            return PlainTextResponse("the runs are still being read\n", 503, {"Retry-After": "1"})
        return JSONResponse(hub.runs.listing())

    async def clients(_: Request) -> Response:
        return JSONResponse(hub.listing())

    async def not_built(_: Request) -> Response:
        return HTMLResponse(NOT_BUILT.format(directory=settings.static_dir.name), 503)

    guard, endpoint = hub.access.guard, request_response
    page: BaseRoute = Route("/", not_built)
    if (settings.static_dir / "index.html").is_file():
        page = Mount("/", StaticFiles(directory=settings.static_dir, html=True))
    routes = [
        *Telemetry("gateway", [source], hub.bus).routes(guard=partial(guard, "watch")),
        Route("/runs", guard("watch", endpoint(runs))),
        Route("/runs/{run}/events", guard("watch", feed)),
        Route("/objects/{sha256}", guard("train", endpoint(objects.__call__))),
        Route("/clients", guard("admin", endpoint(clients))),
        WebSocketRoute("/ws", ClientSocket(hub).__call__),
        page,
    ]
    headers = SAFETY | (ISOLATION if settings.isolation else {}) | (ENCRYPTED if settings.tls_cert else {})
    served = Front(Starlette(routes=routes), own_names(settings.host, settings.hosts))
    return WithHeaders(served, headers)
