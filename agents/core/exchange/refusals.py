"""Tasks that clients say they cannot do: who has refused which, how long it rests, and when nobody is left to ask."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, field
from math import inf

from agents.core.exchange.leases import TaskKey

ENOUGH = 5
MOST_NAMES = 1_000
"""Of those who refused one task; the names of more are not remembered."""
NEXT_S, FIRST_S, LONGEST_S = 0.5, 1.0, 30.0


@dataclass
class _Task:
    clients: set[str] = field(default_factory=set)
    times: int = 0
    enough_at: float = inf


class Refusals:
    """One client's word is not enough: a task is put aside when all that may do it refused it,
    ``ENOUGH`` times at least.

    So a client that refuses everything, under many names, takes no task from those that can do it. Who those are is the
    pool's to say, which does not count for ever on clients that show nothing.
    """

    def __init__(self) -> None:
        self._tasks: dict[TaskKey, _Task] = {}

    def by(self, key: TaskKey, client: str) -> bool:
        """Whether this client has refused the task."""
        return key in self._tasks and client in self._tasks[key].clients

    def enough_for_s(self, key: TaskKey, now: float) -> float:
        """For how long the task has been refused often enough; negative when it was not."""
        return now - self._tasks[key].enough_at if key in self._tasks else -inf

    def refuse(self, key: TaskKey, client: str, able: Set[str], now: float) -> float | None:
        """One more refusal: how many seconds the task rests then; none when it is to be put aside.

        Args:
            key: the task.
            client: who cannot do it.
            able: the clients that may do it yet, as far as anybody can tell.
            now: seconds of any clock.
        """
        task = self._tasks.setdefault(key, _Task())
        if len(task.clients) < MOST_NAMES:
            task.clients.add(client)
        task.times += 1
        if task.times == ENOUGH:
            task.enough_at = now
        if able - task.clients - {client}:
            return NEXT_S
        if task.times >= ENOUGH:
            return None
        return float(min(LONGEST_S, FIRST_S * 2 ** (task.times - 1)))

    def refused_by(self, key: TaskKey) -> int:
        """How many clients have."""
        return len(self._tasks[key].clients) if key in self._tasks else 0

    def forget(self, key: TaskKey) -> None:
        """The task is over."""
        self._tasks.pop(key, None)
