"""Says now and then what is open, so that whoever starts need not look at all the runs that are over.

Pure. Every dispatcher that reads the same stream comes to the same words, whenever it reads it; a finished run stays
finished, so they are true for ever.
"""

from __future__ import annotations

from collections.abc import Iterable

from agents.words.events import MAX_OPEN_RUNS, OpenRun, RunFinished, RunsSettled, RunStarted
from bus.words.envelope import Stored

SETTLE_EVERY = 50
"""Runs that finish between two such events: a start reads two small events for each of the newest so many."""


class Settling:
    """A fold over ``run.started``, ``run.finished`` and ``runs.settled``.

    Attributes:
        due: what is to be said now, if anything.
    """

    def __init__(self, events: Iterable[Stored] = ()) -> None:
        self._open: dict[str, int] = {}
        self._ended = 0
        self.due: RunsSettled | None = None
        for one in events:
            self.fold(one)

    def fold(self, stored: Stored) -> None:
        """Takes one event in, in stream order."""
        match stored.event.data:
            case RunStarted() as data:
                self._open.setdefault(data.run, stored.sequence)
            case RunFinished() as data:
                self._open.pop(data.run, None)
                self._ended += 1
                # While more runs are open than fit, the next end is waited for.
                if self._ended >= SETTLE_EVERY and len(self._open) <= MAX_OPEN_RUNS:
                    still = tuple(OpenRun(run=run, sequence=at) for run, at in self._open.items())
                    self.due = RunsSettled(run=data.run, sequence=stored.sequence, open=still)
            case RunsSettled() as data:
                self._ended = 0
                if self.due is not None and self.due.sequence <= data.sequence:
                    self.due = None
            case _:
                pass
