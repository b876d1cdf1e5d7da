"""What a client says of a verdict on its update: a refusal is a warning, and a lost race is not."""

from __future__ import annotations

import logging

import pytest
from websockets.asyncio.server import ServerConnection, serve

from agents.client.address import Address
from agents.client.runner import Client
from agents.client.trainer import Finished, Progress
from agents.core.exchange.messages import Assignment, UploadBegin, UploadRejected, Welcome
from agents.runtime.tasks import background
from agents.words.events import TaskAssigned, UpdateMetrics
from tests.builders import assigned
from tests.conftest import wait_for


class AtOnce:
    """Trains nothing."""

    engine = "at once"

    async def prepare(self, task: TaskAssigned) -> None:
        """Nothing to fetch."""

    async def run(self, task: TaskAssigned, progress: Progress) -> Finished:
        metrics = UpdateMetrics(predictions=(1,), examples=1, mismatched_images=0, trained_images=0)
        return Finished(b"update", metrics)


@pytest.mark.parametrize(
    ("code", "level"), [("stale", logging.INFO), ("duplicate", logging.INFO), ("norm", logging.WARNING)]
)
async def test_only_a_refusal_is_a_warning(code: str, level: int, caplog: pytest.LogCaptureFixture) -> None:
    async def gateway(socket: ServerConnection) -> None:
        await socket.recv()
        await socket.send(Welcome(heartbeat_s=5, lease_s=5).model_dump_json())
        await socket.send(Assignment(lease="one", task=assigned("u0")).model_dump_json())
        async for text in socket:
            if '"upload.begin"' in str(text):
                upload = UploadBegin.model_validate_json(text).upload
                verdict = UploadRejected(lease="one", upload=upload, code=code, reason="the task was over")
                await socket.send(verdict.model_dump_json())

    caplog.set_level(logging.INFO)
    async with serve(gateway, "127.0.0.1", 0) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        client = Client(Address(f"http://127.0.0.1:{port}"), "native", AtOnce())
        async with background(client.run()):
            await wait_for(lambda: "with u0" in caplog.text or "of u0 rejected" in caplog.text)
    said = [one for one in caplog.records if "u0" in one.getMessage()]
    assert [one.levelno for one in said] == [level]
    assert client.accepted == 0
