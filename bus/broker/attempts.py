"""Tells whose request the broker refused: it names a subject alone, and says it to the connection."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from nats.aio.client import Client


@dataclass(eq=False)
class Attempt:
    """One try of a request: what it published on, and what of that the broker refused."""

    subjects: set[str] = field(default_factory=set)
    denied: str | None = None


current: ContextVar[Attempt | None] = ContextVar("attempt", default=None)


class AttemptingClient(Client):
    """Notes what an attempt publishes on: the broker's refusal names a subject alone, and says it to the connection."""

    async def publish(self, subject: str, *args: Any, **options: Any) -> None:
        """Publishes, noted."""
        if (attempt := current.get()) is not None:
            attempt.subjects.add(subject)
        await super().publish(subject, *args, **options)
