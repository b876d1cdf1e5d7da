"""``/healthz``, ``/readyz`` and ``/metrics`` of an agent, on a port of their own or beside its other paths."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import logging
import platform
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route, request_response
from starlette.types import ASGIApp

from agents.runtime.round_figures import Figure, Source
from agents.runtime.settings import MetricsSettings
from agents.runtime.web import listening, serving
from bus.client import Bus
from bus.work.backlogs import Measured

SHOWN = 20
"""Lost events that ``/readyz`` names."""
BROKER_S = 1.0
"""How long the broker may take to say what waits; later, its figures are missing from the answer."""
FRESH_S = 1.0
"""For how long its answer counts: whoever asks more often costs the broker nothing."""
log = logging.getLogger(__name__)


class Telemetry:
    """The figures of one agent: those that all have, and those of its sources.

    Attributes:
        bus: the agent's connection, once it is there.
    """

    def __init__(self, role: str, sources: Sequence[Source], bus: Bus | None = None) -> None:
        self._role = role
        self._sources = sources
        self.bus = bus
        self._asking = asyncio.Lock()
        self._said: tuple[float, Measured] | None = None

    def is_ready(self) -> bool:
        """Connected to the broker, and caught up wherever the agent follows the stream."""
        return not self.why_not_ready()

    def why_not_ready(self) -> str:
        """What it waits for; empty when it is ready."""
        if self.bus is None or not self.bus.statistics().connected:
            return "no broker"
        return "" if all(one.is_ready() for one in self._sources) else "the stream is still being read"

    async def exposition(self) -> bytes:
        """All figures in the text format of Prometheus; takes ``BROKER_S`` at most beside its own work."""
        registry = CollectorRegistry()
        registry.register(_Families(await self._figures()))
        return generate_latest(registry)

    def routes(self, guard: Callable[[ASGIApp], ASGIApp] | None = None) -> list[BaseRoute]:
        """The three paths; ``guard``, if there is one, decides who may read the figures."""

        async def healthz(_: Request) -> Response:
            return PlainTextResponse("ok\n")

        async def readyz(_: Request) -> Response:
            why = self.why_not_ready()
            lost = self.bus.unreadable if self.bus else ()
            gaps = [f"event {one} of the stream cannot be read: the broker's store is damaged" for one in lost[:SHOWN]]
            if len(lost) > SHOWN:
                gaps.append(f"and {len(lost) - SHOWN} more")
            text = "\n".join([f"not ready: {why}" if why else "ready", *gaps])
            return PlainTextResponse(f"{text}\n", 503 if why else 200)

        async def metrics(_: Request) -> Response:
            return Response(await self.exposition(), headers={"Content-Type": CONTENT_TYPE_LATEST})

        shown = Route("/metrics", metrics if guard is None else guard(request_response(metrics)))
        return [Route("/healthz", healthz), Route("/readyz", readyz), shown]

    async def _figures(self) -> list[Figure]:
        build = {
            "role": self._role,
            "version": importlib.metadata.version("fedbus"),
            "python": platform.python_version(),
        }
        found = [
            Figure("build_info", "what runs here; always 1", 1, build),
            Figure("ready", "1 when /readyz says so", self.is_ready()),
        ]
        if self.bus is None:
            return [*found, Figure("bus_connected", "1 while the broker can be reached", 0)]
        for source in self._sources:
            found += source.figures()
        return found + _said_by_bus(self.bus) + _said_by_broker(await self._measured(self.bus))

    async def _measured(self, bus: Bus) -> Measured:
        """What the broker says, asked once a second at most, however many want to know."""
        async with self._asking:
            if self._said is None or time.monotonic() - self._said[0] > FRESH_S:
                self._said = time.monotonic(), await bus.measure(within_s=BROKER_S)
            return self._said[1]


def _said_by_bus(bus: Bus) -> list[Figure]:
    now = bus.statistics()
    counters = {
        "events_published": (now.published, "events that this agent wrote"),
        "events_repeated": (now.repeated, "events that had been said before, in the same words"),
        "events_conflicting": (now.conflicts, "events that had been said before, in other words"),
        "bus_losses": (now.losses, "lost connections to the broker"),
        "bus_retries": (now.retries, "requests to the broker that were made again"),
        "bus_received_bytes": (now.bytes_in, "bytes from the broker"),
        "bus_sent_bytes": (now.bytes_out, "bytes to the broker"),
    }
    found = [Figure("bus_connected", "1 while the broker can be reached", now.connected)]
    found += [Figure(name, text, value, counter=True) for name, (value, text) in counters.items()]
    for one in bus.consumers:
        labels = {"consumer": one.name}
        found += [
            Figure("redeliveries", "events that came again", one.redeliveries, labels, counter=True),
            Figure("given_up", "events that went to the dead letters", one.buried, labels, counter=True),
        ]
    return found


def _said_by_broker(now: Measured) -> list[Figure]:
    found = []
    for name, backlog in now.backlogs.items():
        labels = {"consumer": name}
        found += [
            Figure("queue_depth", "events not delivered yet", backlog.waiting, labels),
            Figure("unacknowledged", "events delivered and not settled", backlog.unacknowledged, labels),
            Figure("redelivered", "of the unacknowledged, those delivered more than once", backlog.redelivered, labels),
        ]
    if now.dead_letters is not None:
        found.append(Figure("dead_letters", "messages given up and not handled since", now.dead_letters))
    return found


class _Families(Collector):
    """Figures as Prometheus has them: one family for each name."""

    def __init__(self, figures: Iterable[Figure]) -> None:
        self._families: dict[str, Metric] = {}
        for one in figures:
            name = f"fedbus_{one.name}"
            if name not in self._families:
                kind = CounterMetricFamily if one.counter else GaugeMetricFamily
                self._families[name] = kind(name, one.text, labels=list(one.labels))
            family = self._families[name]
            assert isinstance(family, CounterMetricFamily | GaugeMetricFamily)
            family.add_metric(list(one.labels.values()), float(one.value))

    def collect(self) -> Iterable[Metric]:
        """All families."""
        return self._families.values()


@contextlib.asynccontextmanager
async def telemetry(role: str, settings: MetricsSettings, sources: Sequence[Source]) -> AsyncIterator[Telemetry]:
    """Serves the figures of ``sources`` until the block ends, also while there is no broker.

    Raises:
        PortTakenError: something listens on the port.
    """
    figures = Telemetry(role, sources)
    hint = "set FEDBUS_METRICS_PORT to a free port, or to 0 to get one"
    with listening(settings.host, settings.port or 0, hint=hint) as listener:
        async with serving(Starlette(routes=figures.routes()), listener, stop=asyncio.Event()):
            log.info("figures on %s/metrics", listener.url)
            yield figures
