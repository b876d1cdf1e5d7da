"""One token, fifty names that take every task and do none, and three clients that work: the round ends all the same."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import numpy as np
import pytest

from agents.core.exchange.messages import (
    Assignment,
    Ready,
    TaskRevoked,
    UploadAccepted,
    UploadBegin,
    UploadCommit,
    UploadRejected,
    encode_chunk,
)
from agents.core.learning.encodings import encode_update
from agents.words.events import RoundClosed, UpdateRejected, UpdateSubmitted
from bus.client import Bus
from tests.broker.gateway.conftest import METRICS, Gateway, Talk, decided, serving, talking
from tests.broker.gateway.hostile import KINDS, Kind, attacked
from tests.conftest import wait_for

NAMES, USERS, PARAMETERS = 50, 60, 8
DEADLINE_S = 300.0
"""Of the round; before anything is known a task's own time is a quarter of that, and nobody can wait for it here."""
WITHIN_S = DEADLINE_S / 5
UPDATE = encode_update(np.full(PARAMETERS, 0.25, np.float32), "float32")


async def works(gateway: Gateway, name: str, accepted: list[str]) -> None:
    """A client that does one task after the other, until it is cancelled."""
    async with talking(gateway, name, token="secret") as talk:
        upload = 0
        while True:
            await talk.say(Ready())
            while not isinstance(message := await talk.hear(), Assignment):
                pass
            upload += 1
            if await counts(talk, message.lease, upload):
                accepted.append(message.task.user)


async def counts(talk: Talk, lease: str, upload: int) -> bool:
    """Whether the update is the first of its task."""
    digest = hashlib.sha256(UPDATE).hexdigest()
    await talk.say(UploadBegin(lease=lease, upload=upload, size=len(UPDATE), sha256=digest))
    await talk.say(encode_chunk(upload, 0, UPDATE))
    await talk.say(UploadCommit(lease=lease, upload=upload, metrics=METRICS))
    while True:
        message = await talk.hear()
        if isinstance(message, UploadAccepted | UploadRejected | TaskRevoked) and message.lease == lease:
            return isinstance(message, UploadAccepted)


@pytest.mark.parametrize("kind", KINDS)
async def test_fifty_names_of_one_token_that_take_all_tasks_and_do_none_hold_no_round_up(
    bus: Bus, tmp_path: Path, kind: Kind
) -> None:
    users = [f"u{number}" for number in range(USERS)]
    async with (
        serving(bus, tmp_path, parameters=PARAMETERS, join_token="secret") as gateway,
        attacked(gateway.socket_url, "secret", NAMES, kind, size=len(UPDATE)),
    ):
        await gateway.assign(*users, deadline_s=DEADLINE_S)
        accepted: list[str] = []
        honest = [asyncio.create_task(works(gateway, f"works{number}", accepted)) for number in range(3)]
        try:
            await wait_for(lambda: len(accepted) == USERS or any(task.done() for task in honest), within_s=WITHIN_S)
        finally:
            for task in honest:
                task.cancel()
            await asyncio.gather(*honest, return_exceptions=True)
        submitted = await gateway.events(UpdateSubmitted)
        assert {one.user for one in submitted} == set(users)
        assert all(one.client.startswith("works") for one in submitted)
        assert await gateway.events(UpdateRejected) == []
        closed = await decided(gateway)
        assert isinstance(closed, RoundClosed)
        assert (closed.reason, closed.accepted) == ("all", USERS)
