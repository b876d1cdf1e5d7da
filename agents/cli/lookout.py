"""Says what a run waits for when nothing is heard of it: an agent, a client, or its first round."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

from agents.cli.clients import connected_clients, find_gateway
from agents.cli.console import errors
from agents.cli.here import AGENTS
from agents.client.address import GatewayUnreachableError
from agents.client.greeting import GatewayRefusedError
from agents.core.views.run import RunView
from agents.runtime.process import HEARTBEAT_S
from agents.runtime.tasks import background
from agents.words.events import Heartbeat, Progress
from bus.client import Bus
from bus.errors import BrokerUnavailableError, PermissionDeniedError
from bus.stream.live_reader import LiveReader
from bus.words.envelope import Stored
from bus.words.subjects import events_of

QUIET_S = 3 * HEARTBEAT_S
"""An agent of which nothing was heard for three of its beats is not there, or too busy to say so."""
LOOK_S = 0.1
WORK = {
    "labeller": "labels the images",
    "dispatcher": "plans the rounds",
    "gateway": "hands out the tasks",
    "aggregator": "makes the model",
    "evaluator": "scores the model",
}
NO_CLIENT = "no client is connected; start one: fedbus client --native 1, or open the page: fedbus page"


def awaited(view: RunView) -> tuple[str, ...]:
    """The agents that may have to say the run's next event; none for a run that is over or waits for its operator."""
    if view.started is None or view.finished is not None:
        return ()
    labeller = ("labeller",) if len(view.labelled) < view.users else ()
    if not view.rounds:
        return labeller
    match view.rounds[max(view.rounds)].phase:
        case "asked":
            return (*labeller, "dispatcher")
        case "open":
            return ("gateway", "aggregator")
        case "closed":
            return ("aggregator",)
        case "published":
            return ("dispatcher", "evaluator")
        case _:
            return ("dispatcher",)


def waits_for_its_first_round(view: RunView) -> bool:
    """Whether nobody has asked for a round yet."""
    return view.started is not None and view.finished is None and not view.rounds and not awaited(view)


class Lookout:
    """Hears which agents beat, and whether anything goes on in the run of ``view``, into which others fold its events.

    Where that cannot be known nothing is said: while the broker was away, and of clients unless one gateway beats and
    lets itself be asked.
    """

    def __init__(self, bus: Bus, view: RunView) -> None:
        self._bus = bus
        self.view = view
        self._beats: dict[tuple[str, str], float] = {}
        self._seen = (0, 0)
        self._moved_at = time.monotonic()
        self._said: set[str] = set()
        self._asked = False

    async def hear(self, beats: LiveReader[Heartbeat]) -> None:
        """Notes the agents' beats; endless."""
        async for beat in beats:
            self._beats[beat.role, beat.id] = time.monotonic()

    async def note(self, progress: LiveReader[Progress]) -> None:
        """Notes that clients are at work; endless."""
        async for _ in progress:
            self._moved_at = time.monotonic()

    def present(self, role: str) -> int:
        """How many agents of this role beat now."""
        since = time.monotonic() - QUIET_S
        return sum(one == role and at >= since for (one, _), at in self._beats.items())

    def quiet_s(self) -> float:
        """For how long nothing has been heard of the run, with the broker there all the time."""
        now = self._bus.statistics()
        seen = (self.view.sequence, now.losses)
        if seen != self._seen or not now.connected:
            self._seen, self._moved_at = seen, time.monotonic()
        return time.monotonic() - self._moved_at

    async def missing(self) -> list[str]:
        """What the run waits for that is not there, in plain words with the command that helps."""
        if waits_for_its_first_round(self.view):
            return [f"no round was started; start the first: fedbus round start {self.view.run}"]
        roles = awaited(self.view)
        if roles and not any(self.present(role) for role in AGENTS):
            return [f"no agent is heard; start each in a terminal of its own: fedbus agent {' | '.join(AGENTS)}"]
        if lost := [role for role in roles if not self.present(role)]:
            return [f"nobody {WORK[role]}: no {role} is heard; start one: fedbus agent {role}" for role in lost]
        if "gateway" in roles and self.present("gateway") == 1 and await clients() == 0:
            return [NO_CLIENT]
        return []

    async def tell_when_quiet(self) -> None:
        """Says each thing once on standard error, and looks once in each silence; endless."""
        looked = False
        while True:
            await asyncio.sleep(LOOK_S)
            if self.quiet_s() < QUIET_S:
                looked = False
            elif not looked:
                looked = True
                for line in await self.missing():
                    if line not in self._said:
                        self._said.add(line)
                        say(line)

    async def tell_unless_begun(self) -> None:
        """Waits until somebody is seen at work on the run, at most ``QUIET_S``; then says what is missing."""
        until = time.monotonic() + QUIET_S
        while time.monotonic() < until:
            if await self._is_begun():
                return
            await asyncio.sleep(LOOK_S)
        if self._bus.statistics().losses == 0:
            for line in await self.missing():
                say(line)

    async def _is_begun(self) -> bool:
        view = self.view
        if view.started is None:
            return False
        if not view.rounds:
            return bool(view.labelled) or self.present("labeller") > 0
        if "gateway" not in awaited(view):
            return view.finished is not None or any(one.submitted for one in view.rounds.values())
        # Asked again only at the end: each question costs a token.
        if not self._asked:
            self._asked = True
            return bool(await clients())
        return any(one.submitted for one in view.rounds.values())


@contextlib.asynccontextmanager
async def lookout(bus: Bus, view: RunView) -> AsyncIterator[Lookout]:
    """One that hears until the end of the block."""
    one = Lookout(bus, view)
    async with (
        bus.hear(Heartbeat) as beats,
        bus.hear(Progress, run=view.run) as progress,
        background(one.hear(beats)),
        background(one.note(progress)),
    ):
        yield one


async def tell_unless_begun(bus: Bus, run: str) -> None:
    """For a command that has just started something: says what is missing for it to go on."""
    view = RunView(run)

    async def fold(items: AsyncIterator[object]) -> None:
        async for item in items:
            if isinstance(item, Stored):
                view.fold(item)

    async with lookout(bus, view) as one, bus.follow(events_of(run)) as items, background(fold(items)):
        await one.tell_unless_begun()


async def clients() -> int | None:
    """How many clients the gateway has, if it says so to an administrator of this bus."""
    with contextlib.suppress(
        GatewayRefusedError, GatewayUnreachableError, BrokerUnavailableError, PermissionDeniedError
    ):
        return len(await connected_clients(find_gateway("", ""), ""))
    return None


def say(line: str) -> None:
    """One line for whoever wonders why nothing happens."""
    errors.print(line, style="yellow", soft_wrap=True, markup=False)
