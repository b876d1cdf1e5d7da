"""Who may have a task: the clients that wait for one, and which of them is the best for it.

A task that nobody holds may go to all that have room. One whose holders let its own time pass may go to a second, and
one that merely takes a while is backed up (Dean and Ghemawat, MapReduce, OSDI 2004) by a client that is *idle*: it has
waited for ``IDLE_S`` although it would have been given any task that nobody holds.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from math import inf

from agents.core.exchange.connections import Connection
from agents.core.exchange.leases import MOST_HOLDERS, Lease, LeaseTable, TaskKey
from agents.core.exchange.members import Members
from agents.core.exchange.messages import MAX_SLOTS, ProtocolError
from agents.core.exchange.refusals import Refusals
from agents.core.exchange.standing import Standing

IDLE_S = 0.25


@dataclass(frozen=True)
class Choice:
    """Who gets a task, and which lease of it makes room for that."""

    client: str
    connection: Connection
    instead_of: Lease | None


Rank = tuple[bool, int, int]
"""A client's, for a task that nobody holds or refused, the best least: never delivered anything, faults, tasks held."""


class Line:
    """Those that wait, best first for such tasks: made once for many tasks, since ranking all for each takes too long.

    What changes after it was made is seen when a client's turn comes.
    """

    def __init__(self, ranks: Iterable[tuple[str, Rank]]) -> None:
        self._places: dict[str, deque[int]] = {}
        self._heap: list[tuple[Rank, int, str]] = []
        for place, (client, rank) in enumerate(ranks):
            places = self._places.setdefault(client, deque())
            places.append(place)
            if len(places) == 1:
                self._heap.append((rank, place, client))
        heapq.heapify(self._heap)

    def next(self, rank_of: Callable[[str], Rank | None]) -> str | None:
        """The best of now; ``rank_of`` says what a client's rank is now, or that it may have nothing more."""
        while self._heap:
            ranked, place, client = heapq.heappop(self._heap)
            rank = rank_of(client)
            if rank is None:
                continue
            if rank > ranked:
                heapq.heappush(self._heap, (rank, place, client))
                continue
            places = self._places[client]
            places.popleft()
            if places:
                heapq.heappush(self._heap, (rank, places[0], client))
            return client
        return None


class Fitness(IntEnum):
    """What a client that has room may have, and what a task asks of one; each includes those before it.

    ``ROOM``: nobody holds the task, or all holders let its time pass. ``IDLE``: one takes a while over it, and a second
    may back it up. ``PROVEN``: two do, and one of them never delivered anything, so that a client that did takes its
    place. ``NOBODY``: the task is in good hands.
    """

    ROOM = 0
    IDLE = 1
    PROVEN = 2
    NOBODY = 3


class Candidates:
    """The queue of those that wait, and the rules of who may have what."""

    def __init__(self, members: Members, leases: LeaseTable, standing: Standing, refusals: Refusals) -> None:
        self._members = members
        self._leases = leases
        self._standing = standing
        self._refusals = refusals
        self._queue: deque[str] = deque()
        self._since: dict[str, float] = {}
        self._idle: set[str] = set()

    def __len__(self) -> int:
        """How many tasks are waited for."""
        return len(self._queue)

    # The queue

    def want(self, client: str, now: float) -> None:
        """The client waits for one more task.

        Raises:
            ProtocolError: ``too_many`` when it has as many as it may.
        """
        if len(self._leases.of(client)) + self.waits_for(client) >= MAX_SLOTS:
            raise ProtocolError("too_many", f"a client holds or waits for at most {MAX_SLOTS} tasks")
        self._queue.append(client)
        self._since.setdefault(client, now)

    def waits_for(self, client: str) -> int:
        """How many tasks this client waits for."""
        return self._queue.count(client)

    def forget(self, client: str) -> bool:
        """The client waits for nothing any more; false if it did not wait."""
        self._idle.discard(client)
        if self._since.pop(client, None) is None:
            return False
        self._queue = deque(name for name in self._queue if name != client)
        return True

    def waiting(self) -> list[tuple[str, Fitness]]:
        """Those that wait and have room, in order, each once for each task that it waits for."""
        fitness = {client: self._fitness(client) for client in self._since if self._has_room(client)}
        return [(client, fitness[client]) for client in self._queue if client in fitness]

    def room(self) -> int:
        """How many tasks those that wait have room for, together and under their tokens."""
        tokens: Counter[str] = Counter()
        for client, times in Counter(self._queue).items():
            connection = self._members.get(client)
            if connection is not None and self._has_room(client):
                most = self._standing.of_client(client) - len(self._leases.of(client))
                tokens[connection.token] += min(times, most)
        return sum(
            min(most, self._standing.of_token(token) - self._leases.under(token)) for token, most in tokens.items()
        )

    def notice_idle(self, now: float) -> float:
        """Who has waited for long enough is idle from now on; when that has to be looked at again."""
        soonest = inf
        for client, since in self._since.items():
            if client not in self._idle:
                if since + IDLE_S <= now:
                    self._idle.add(client)
                else:
                    soonest = min(soonest, since + IDLE_S)
        return soonest

    def open_task(self, now: float) -> None:
        """There was a task that nobody held, and there may be more: nobody is idle yet."""
        self._idle.clear()
        self._since = dict.fromkeys(self._since, now)

    # The rules

    def _has_room(self, client: str) -> bool:
        """Whether the client may have one more task.

        Nobody who lets a task lie gets another, and nobody whose updates never counted while it takes long over one.
        """
        connection, held = self._members.get(client), self._leases.of(client)
        return (
            connection is not None
            and len(held) < self._standing.of_client(client)
            and not any(lease.lapsed or (lease.shareable and not self._has_worked(client)) for lease in held)
            and self._leases.under(connection.token) < self._standing.of_token(connection.token)
        )

    def _fitness(self, client: str) -> Fitness:
        takes_long = any(lease.shareable and not lease.committing for lease in self._leases.of(client))
        if client not in self._idle or takes_long:
            return Fitness.ROOM
        return Fitness.PROVEN if self._has_worked(client) else Fitness.IDLE

    def wanted(self, key: TaskKey) -> Fitness:
        """What the task asks of whoever may have it too."""
        holders = self._leases.holders(key)
        if any(lease.committing or not lease.shareable for lease in holders):
            return Fitness.NOBODY
        if all(lease.lapsed for lease in holders):
            return Fitness.ROOM
        if len(holders) < MOST_HOLDERS:
            return Fitness.IDLE
        return Fitness.PROVEN if self._makes_room(holders) is not None else Fitness.NOBODY

    def fits(self, key: TaskKey, client: str, wanted: Fitness) -> bool:
        """Whether this client may be asked: it does not hold the task, nor backs up what it refused."""
        if any(lease.record.client == client for lease in self._leases.holders(key)):
            return False
        return wanted is Fitness.ROOM or not self._refusals.by(key, client)

    def line(self) -> Line:
        """Those that wait now, for the next tasks that nobody holds."""
        ranks = {client: self._rank(client) for client in self._since}
        return Line((client, rank) for client in self._queue if (rank := ranks[client]) is not None)

    def _rank(self, client: str) -> Rank | None:
        connection = self._members.get(client)
        if connection is None or client not in self._since or not self._has_room(client):
            return None
        faults = self._standing.faults(client, connection.token)
        return not self._has_worked(client), faults, len(self._leases.of(client))

    def choose(self, key: TaskKey, line: Line) -> Choice | None:
        """Takes the best out of the queue, and of the equally good whoever waits longest.

        Better is who did not refuse the task, whose updates count, who has another token than its holders, who fails
        less and holds less.
        """
        holders = self._leases.holders(key)
        if holders or self._refusals.refused_by(key):
            return self._choose_for(key, holders)
        client = line.next(self._rank)
        connection = self._members.get(client) if client is not None else None
        if client is None or connection is None:
            return None
        self._take(client)
        return Choice(client, connection, None)

    def _choose_for(self, key: TaskKey, holders: Sequence[Lease]) -> Choice | None:
        best: tuple[tuple[bool, bool, bool, int, int], str, Connection] | None = None
        wanted = self.wanted(key)
        for client, fitness in dict.fromkeys(self.waiting()):
            connection = self._members.get(client)
            if connection is None or fitness < wanted or not self.fits(key, client, wanted):
                continue
            rank = (
                self._refusals.by(key, client),
                not self._has_worked(client),
                any(lease.record.token == connection.token for lease in holders),
                self._standing.faults(client, connection.token),
                len(self._leases.of(client)),
            )
            if best is None or rank < best[0]:
                best = rank, client, connection
            if not any(rank):
                break
        if best is None:
            return None
        _, client, connection = best
        self._take(client)
        return Choice(client, connection, self._makes_room(holders) if len(holders) == MOST_HOLDERS else None)

    def _take(self, client: str) -> None:
        self._queue.remove(client)
        if client not in self._queue:
            del self._since[client]

    def able(self, key: TaskKey, patience_s: float, now: float) -> set[str]:
        """The clients that may do the task yet: they hold a task in its time, or wait for one that they may have.

        Once the task was refused often enough, who shows nothing is counted on for ``patience_s`` and no longer: from
        then on only those whose last update that counts is not older than that.
        """
        overdue = self._refusals.enough_for_s(key, now) >= patience_s
        found = set()
        for client, _ in self._members:
            held = self._leases.of(client)
            works = all(lease.committing or not lease.lapsed for lease in held)
            if not works or not (held or (client in self._since and self._has_room(client))):
                continue
            if not overdue or now - self._standing.worked_at(client) < patience_s:
                found.add(client)
        return found

    def _has_worked(self, client: str) -> bool:
        return self._standing.worked_at(client) > -inf

    def _makes_room(self, holders: Sequence[Lease]) -> Lease | None:
        """The oldest that lapsed, or whose holder never delivered anything."""
        return next((one for one in holders if one.lapsed or not self._has_worked(one.record.client)), None)
