"""Tasks that clients say they cannot do: who has refused which, how long it rests, and when nobody is left to ask."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, field

from agents.core.exchange.leases import TaskKey

ENOUGH = 5
NEXT_S, FIRST_S, LONGEST_S = 0.5, 1.0, 30.0


@dataclass
class _Task:
    clients: set[str] = field(default_factory=set)
    times: int = 0


class Refusals:
    """One client's word is not enough: a task is put aside when all that work refused it, ``ENOUGH`` times at least.

    So a client that refuses everything, under many names, takes no task from those that can do it.
    """

    def __init__(self) -> None:
        self._tasks: dict[TaskKey, _Task] = {}

    def by(self, key: TaskKey, client: str) -> bool:
        """Whether this client has refused the task."""
        return key in self._tasks and client in self._tasks[key].clients

    def refuse(self, key: TaskKey, client: str, working: Set[str]) -> float | None:
        """One more refusal: how many seconds the task rests then; none when it is to be put aside.

        Args:
            key: the task.
            client: who cannot do it.
            working: the clients that are there, and hold or wait for a task.
        """
        task = self._tasks.setdefault(key, _Task())
        task.clients.add(client)
        task.times += 1
        if working - task.clients:
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
