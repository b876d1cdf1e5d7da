"""What a test does to a run that goes on: kills the broker, stops processes for a while, starts things twice."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterable

from bus.words.payload import payload_of
from tests.chaos.system import Chaos, Disturbance
from tests.conftest import wait_for


def broker_pid(chaos: Chaos) -> int | None:
    """The process id of the broker that listens now: it stands in the name of the file that tells its ports."""
    found = [int(path.stem.removeprefix("nats-server_")) for path in (chaos.system.store / "nats").glob("*.ports")]
    return found[0] if found else None


def kill_broker_at(*moments: str) -> Disturbance:
    """Kills the broker when the first event of each of these types is in the stream."""

    async def disturb(chaos: Chaos) -> None:
        for moment in moments:
            await chaos.until(payload_of(moment))
            await kill_broker(chaos)

    return disturb


async def kill_broker(chaos: Chaos) -> None:
    """Kills the broker and waits for the next one."""
    pid = await wait_for(lambda: broker_pid(chaos))
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    await wait_for(lambda: broker_pid(chaos) not in (None, pid), within_s=30)


async def stop_for(pids: Iterable[int], seconds: float) -> None:
    """Freezes processes with SIGSTOP and lets them go on after this time, in the same order."""
    stopped = list(pids)
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        # Here time itself is what is tested.
        await asyncio.sleep(seconds)
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
