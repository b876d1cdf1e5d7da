"""Named places at which a test may have a process killed, to show that nothing is lost there; off unless armed.

``FEDBUS_CRASH_AT`` arms points, joined by commas, each ``name`` or ``name:N`` for the N-th time that a process comes
by. ``FEDBUS_CRASH_ONCE`` is a folder that remembers which of them were hit, so that each kills one process only.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

PUBLISHER = ("publisher.between_windows",)
WORKER = ("worker.buried", "worker.handled_again", "worker.noted")
POINTS = (*PUBLISHER, *WORKER)
"""The bus's own; whoever uses it has more."""


def _armed(text: str) -> dict[str, int]:
    """Which points kill at which pass."""
    entries = (entry.partition(":") for entry in filter(None, text.split(",")))
    return {name: int(passes or 1) for name, _, passes in entries}


_ARMED = _armed(os.environ.get("FEDBUS_CRASH_AT", ""))
_passes: Counter[str] = Counter()


def unknown_points(known: Iterable[str]) -> list[str]:
    """What ``FEDBUS_CRASH_AT`` names that is neither one of the bus's own points nor of ``known``."""
    return sorted(_ARMED.keys() - {*known, *POINTS})


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
