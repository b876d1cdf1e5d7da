"""What an agent shows of itself: figures, and the sources that give them when somebody asks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime


@dataclass(frozen=True)
class Figure:
    """One value now: a gauge, or a counter that only grows (its exposed name then ends in ``_total``)."""

    name: str
    text: str
    value: float
    labels: Mapping[str, str] = field(default_factory=dict)
    counter: bool = False


@dataclass(frozen=True)
class Source:
    """A part of an agent that can be looked at; both are called in the agent's event loop and must not block."""

    figures: Callable[[], Iterable[Figure]]
    is_ready: Callable[[], bool] = lambda: True
    """Whether it has caught up with what it follows."""


_sources: ContextVar[list[Source] | None] = ContextVar("sources", default=None)


def collect_sources() -> list[Source]:
    """A list that takes in what code of this context exposes from now on."""
    sources: list[Source] = []
    _sources.set(sources)
    return sources


def expose(source: Source) -> None:
    """Shows ``source`` beside the agent's other figures; does nothing where nobody looks."""
    if (sources := _sources.get()) is not None:
        sources.append(source)


def age_s(since: datetime) -> float:
    """Seconds from ``since`` to now, by this machine's clock; never negative."""
    return max(0.0, (datetime.now(UTC) - since).total_seconds())


@dataclass(frozen=True)
class RoundFigure:
    """One round of a run that is not finished: when it began, and what ended it, if anything did."""

    run: str
    round: int
    since: datetime
    closed: bool
    published: bool
    failed: bool

    @property
    def state(self) -> str:
        """``failed``, ``published`` (it has a model), ``closed`` (without one yet) or ``open``."""
        return "failed" if self.failed else "published" if self.published else "closed" if self.closed else "open"


def round_figures(rounds: Iterable[RoundFigure]) -> list[Figure]:
    """How many rounds are in which state, and how old the open ones are."""
    states = dict.fromkeys(("open", "closed", "published", "failed"), 0)
    found: list[Figure] = []
    for one in rounds:
        states[one.state] += 1
        if one.state == "open":
            labels = {"run": one.run, "round": str(one.round)}
            found.append(Figure("round_age_seconds", "time since an open round began", age_s(one.since), labels))
    text = "rounds of the runs that are not finished"
    return found + [Figure("rounds", text, count, {"state": state}) for state, count in states.items()]
