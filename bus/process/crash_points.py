"""Named places at which a test may have a process killed, to show that nothing is lost there; off unless armed.

``FEDBUS_CRASH_AT`` arms points, joined by commas, each ``name`` or ``name:N`` for the N-th time that a process comes
by. ``FEDBUS_CRASH_ONCE`` is a folder that remembers which of them were hit, so that each kills one process only.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path

LABELLER = ("labeller.received", "labeller.decided", "labeller.published")
DISPATCHER = (
    "dispatcher.planning",
    "dispatcher.spec_put",
    "dispatcher.round.planned",
    "dispatcher.task.assigned",
    "dispatcher.round.started",
    "dispatcher.run.finished",
)
AGGREGATOR = (
    "aggregator.received",
    "aggregator.added",
    "aggregator.closing",
    "aggregator.round.closed",
    "aggregator.model_put",
    "aggregator.state_put",
    "aggregator.model.published",
)
EVALUATOR = ("evaluator.received", "evaluator.evaluated", "evaluator.details_put", "evaluator.published")
GATEWAY = (
    "gateway.delivered",
    "gateway.leased",
    "gateway.upload_begun",
    "gateway.chunk_written",
    "gateway.committed",
    "gateway.checked",
    "gateway.object_put",
    "gateway.submitted",
)
CLIENT = ("client.assigned", "client.trained", "client.upload_begun", "client.chunk_sent", "client.committed")
PUBLISHER = ("publisher.between_windows",)
WORKER = ("worker.buried", "worker.handled_again", "worker.noted")
POINTS = (*LABELLER, *DISPATCHER, *AGGREGATOR, *EVALUATOR, *GATEWAY, *CLIENT, *PUBLISHER, *WORKER)


def _armed(text: str) -> dict[str, int]:
    """Which points kill at which pass.

    Raises:
        ValueError: a name is no point.
    """
    armed = {}
    for entry in filter(None, text.split(",")):
        name, _, passes = entry.partition(":")
        if name not in POINTS:
            raise ValueError(f"FEDBUS_CRASH_AT names {name!r}, which is none of {', '.join(POINTS)}")
        armed[name] = int(passes or 1)
    return armed


_ARMED = _armed(os.environ.get("FEDBUS_CRASH_AT", ""))
_passes: Counter[str] = Counter()


def crash_point(name: str) -> None:
    """Ends the process with SIGKILL if the environment says so; does nothing otherwise."""
    if name not in _ARMED:
        return
    _passes[name] += 1
    if _passes[name] == _ARMED[name] and _first(name):
        os.kill(os.getpid(), signal.SIGKILL)


def _first(name: str) -> bool:
    folder = os.environ.get("FEDBUS_CRASH_ONCE")
    if folder is None:
        return True
    try:
        (Path(folder) / name).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True
