"""``python -m agents.runtime.health ROLE``: exits 0 when an agent of this role beats, for containers that ask."""

from __future__ import annotations

import asyncio
import sys

from agents.words.events import Heartbeat
from bus.broker.settings import BusSettings
from bus.client import Bus
from bus.errors import FedbusError

BEAT_S = 5.0
"""Agents beat every two seconds; this leaves room for one that is late."""


async def beats(role: str, settings: BusSettings | None = None, *, within_s: float = BEAT_S) -> bool:
    """Whether a heartbeat of ``role`` comes in time; false too when there is no broker."""
    try:
        async with (
            asyncio.timeout(within_s),
            Bus.connect(settings, name="healthcheck", wait_s=within_s) as bus,
            bus.hear(Heartbeat) as items,
        ):
            async for heartbeat in items:
                if heartbeat.role == role:
                    return True
    except (TimeoutError, FedbusError):
        pass
    return False


if __name__ == "__main__":
    sys.exit(0 if asyncio.run(beats(sys.argv[1])) else 1)
