"""How long each task may be in one client's hands: what its run has taught, its round's deadline, and its own past."""

from __future__ import annotations

from collections import Counter

from agents.core.exchange.leases import Lease, TaskKey
from agents.core.exchange.refusals import Refusals
from agents.core.exchange.runs import Runs
from agents.core.exchange.task_times import TaskTimes


class Pace:
    """The times of leases, seconds."""

    def __init__(self, runs: Runs, refusals: Refusals) -> None:
        self._runs = runs
        self._refusals = refusals
        self._times = TaskTimes()
        self._slowly: Counter[TaskKey] = Counter()
        """How often a task's own time passed."""

    def learn(self, run: str, took_s: float) -> bool:
        """A task of this run took so long; true when it is known from now on how long they take."""
        return self._times.learn(run, took_s)

    def passed(self, key: TaskKey) -> None:
        """The task's own time passed."""
        self._slowly[key] += 1

    def forget(self, key: TaskKey) -> None:
        """The task is over."""
        self._slowly.pop(key, None)

    def usual_s(self, key: TaskKey) -> float:
        """The time of any task of its run."""
        return self._times.allowed_s(key[0], self._runs.deadline_s(key))

    def allowed_s(self, key: TaskKey) -> float:
        """The task's own time: doubled with each holder that let it pass, up to its round's."""
        if self._refusals.refused_by(key):
            # Who refuses it hands it back at once: a slow client needs no more time to keep its lease.
            return self.usual_s(key)
        return min(self._runs.deadline_s(key), self.usual_s(key) * 2.0 ** min(20, self._slowly[key]))

    def backup_s(self, key: TaskKey) -> float:
        """After which an idle client may back it up."""
        return self._times.backup_s(key[0], self._runs.deadline_s(key))

    def lengthen(self, lease: Lease) -> None:
        """Gives a lease the time that tasks are known to take by now, where that is longer than at its grant.

        Where many are done at once, or this gateway itself is slow, all take long, and backups would make it slower.
        """
        if lease.granted_at is not None:
            lease.backup_at = max(lease.backup_at, lease.granted_at + self.backup_s(lease.key))
            lease.due_at = max(lease.due_at, lease.granted_at + self.allowed_s(lease.key))
