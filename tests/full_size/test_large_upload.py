"""346 MB, the update of a fully trained ViT-base: cut at any byte, resumed, aggregated; with little memory."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import resource
from pathlib import Path

import numpy as np
import pytest

from agents.aggregator.service import Aggregator
from agents.core.exchange.messages import UploadAccepted, UploadCommit
from agents.runtime.tasks import background
from agents.words.events import ModelPublished
from bus.client import Bus
from tests.broker.gateway.conftest import METRICS, nats, serving, talking
from tests.conftest import bus, wait_for

__all__ = ["bus", "nats"]
pytestmark = [pytest.mark.large, pytest.mark.timeout(900)]
PARAMETERS = 86_600_000
SPARE_MB = 700


async def test_an_update_of_346_mb_resumes_at_any_byte_and_becomes_the_model(bus: Bus, tmp_path: Path) -> None:
    delta = np.random.default_rng(0).normal(0, 0.01, PARAMETERS).astype("<f4")
    data = delta.tobytes()
    cuts = sorted(random.Random(0).randrange(len(data)) for _ in range(2))
    async with serving(bus, tmp_path, parameters=PARAMETERS) as gateway, background(Aggregator(bus).serve()):
        await gateway.assign("u0")
        async with talking(gateway) as talk:
            lease = (await talk.task()).lease
            await talk.send(data, await talk.begin(lease, data), until=cuts[0])
        async with talking(gateway, resume=(lease,)) as talk:
            assert await talk.begin(lease, data) == cuts[0]
            await talk.send(data, cuts[0], until=cuts[1])
        held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        async with talking(gateway, resume=(lease,)) as talk:
            assert await talk.begin(lease, data) == cuts[1]
            await talk.send(data, cuts[1])
            await talk.say(UploadCommit(lease=lease, upload=1, metrics=METRICS))
            async with asyncio.timeout(300):
                answer = await talk.socket.recv()
        assert UploadAccepted.model_validate_json(answer).lease == lease

        async def published() -> list[ModelPublished]:
            return await gateway.events(ModelPublished)

        (model,) = await wait_for(published, within_s=300)
        # The mean of one update on a base of zeros is the update, but for the last bit of the fixed point.
        path = tmp_path / "model"
        await bus.objects.fetch_to(model.model, path)
    found = np.memmap(path, "<f4", "r")
    assert np.abs(found - delta).max() <= 2.0**-31
    assert hashlib.sha256(path.read_bytes()).hexdigest() == model.model.sha256
    grown_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - held) / 1024
    # One accumulator of 693 MB and mapped files; the update is never held as bytes of this process's own again.
    assert grown_mb < SPARE_MB + 4 * PARAMETERS / 2**20 * 3, f"{grown_mb:.0f} MB on {os.uname().sysname}"
