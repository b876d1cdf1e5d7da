"""How long a task may take before somebody else gets it too: learned from those of its run that are done."""

from __future__ import annotations

from collections import OrderedDict, deque
from statistics import median

KNOWN, WINDOW, RUNS = 5, 100, 64
SHARE, QUANTILE, FACTOR = 4, 0.9, 4.0
LEAST_S = 5.0
FIRST_BACKUP_S, BACKUP_FACTOR, LEAST_BACKUP_S = 3.0, 2.0, 1.0


class TaskTimes:
    """A task's own time is ``FACTOR`` times what nine of ten of its run's last tasks took, and at least ``LEAST_S``.

    Until ``KNOWN`` are done it is a quarter of the round's deadline; it is never more than half of that. An idle client
    backs it up after ``BACKUP_FACTOR`` times the median, or ``FIRST_BACKUP_S`` while nothing is known.
    """

    def __init__(self) -> None:
        self._took: OrderedDict[str, deque[float]] = OrderedDict()

    def learn(self, run: str, took_s: float) -> bool:
        """A task of this run took so long, and its update counts; true when enough are known from now on."""
        self._took.setdefault(run, deque(maxlen=WINDOW)).append(took_s)
        self._took.move_to_end(run)
        while len(self._took) > RUNS:
            self._took.popitem(last=False)
        return len(self._took[run]) == KNOWN

    def allowed_s(self, run: str, deadline_s: float) -> float:
        """Seconds that a task of this run may take, in a round of so many."""
        took = sorted(self._took.get(run, ()))
        if len(took) < KNOWN:
            return deadline_s / SHARE
        learned = FACTOR * took[int(QUANTILE * (len(took) - 1))]
        return min(max(learned, LEAST_S), deadline_s / 2)

    def backup_s(self, run: str, deadline_s: float) -> float:
        """Seconds after which an idle client may back up a task of this run, in a round of so many."""
        took = self._took.get(run)
        after_s = max(LEAST_BACKUP_S, BACKUP_FACTOR * median(took)) if took else FIRST_BACKUP_S
        return min(after_s, self.allowed_s(run, deadline_s))
