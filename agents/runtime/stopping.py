"""Stops a process that is told to: it finishes what is quick, and is gone in time whatever hangs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import threading
from collections.abc import Iterator

GONE_S = 1.5
"""From the signal to the end of the process: a broker that is frozen, or a model that computes, is not waited for."""
log = logging.getLogger(__name__)


@contextlib.contextmanager
def set_by_signals(stop: asyncio.Event, *, gone_s: float | None = None) -> Iterator[None]:
    """Sets ``stop`` on SIGTERM and SIGINT.

    With ``gone_s`` the process ends that many seconds later at the latest, with 0, as if it had been killed: the stream
    has all that counts.
    """
    loop = asyncio.get_running_loop()

    def told() -> None:
        if gone_s is not None and not stop.is_set():
            cut = threading.Timer(gone_s, _end)
            cut.daemon = True
            cut.start()
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


def _end() -> None:
    log.info("stopped, with something left that did not end")
    os._exit(0)
