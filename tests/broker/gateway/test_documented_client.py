"""What docs/protocol.md says is enough: a client that knows nothing else takes part in a round."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import hashlib
import json
import re
import struct
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import websockets

from agents.cli.run_setup import RunSources, start_run
from agents.core.learning.decoding import decode_update
from agents.gateway.service import running_gateway
from agents.gateway.settings import GatewaySettings
from agents.words.events import ModelPublished, RoundStarted, UpdateSubmitted
from bus.broker.server import EmbeddedServer
from bus.client import Bus
from tests.broker.gateway import documented_client
from tests.broker.gateway.conftest import DEADLINE_S
from tests.broker.gateway.documented_client import Client, Refused, augmented, encoded, mix
from tests.broker.test_agents import events, of, running, small, until_event

PAGE = (Path(__file__).parents[3] / "docs" / "protocol.md").read_text()
TOKEN = "let-me-in"


@contextlib.asynccontextmanager
async def gateway(bus: Bus, folder: Path, **settings: object) -> AsyncIterator[str]:
    chosen = {"port": 0, "spool_dir": folder / "spool", "static_dir": folder, "join_token": TOKEN, **settings}
    async with running_gateway(bus, GatewaySettings.model_validate(chosen)) as url:
        yield url


def test_the_client_knows_nothing_of_fedbus() -> None:
    tree = ast.parse(Path(documented_client.__file__).read_text())
    imported = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    assert not any(isinstance(node, ast.ImportFrom) for node in ast.walk(tree))
    assert {name.split(".")[0] for name in imported} - sys.stdlib_module_names == {"numpy", "websockets"}


@pytest.mark.parametrize("encoding", ["float32", "int8"])
async def test_a_client_written_from_the_page_is_cut_refused_and_finishes_a_round(
    nats: EmbeddedServer, bus: Bus, tmp_path: Path, encoding: str
) -> None:
    config = small(users=2)
    config = config.model_copy(update={"training": config.training.model_copy(update={"encoding": encoding})})
    async with (
        asyncio.timeout(60),
        running(nats, "labeller", "dispatcher", "aggregator"),
        gateway(bus, tmp_path, chunk_bytes=1_024) as url,
    ):
        started = await start_run(bus, "shop", config, RunSources())
        await bus.publish(RoundStarted(run="shop", round=1))
        client = Client(url, TOKEN, "stranger")
        await client.connect()

        lease = await client.take()
        data, metrics = await client.work(client.held[lease])
        answer = await client.upload(lease, data, metrics, sha256="0" * 64)
        assert (answer["type"], answer["code"]) == ("upload.rejected", "digest")

        lease = await client.take()
        data, metrics = await client.work(client.held[lease])
        half = len(data) // 2
        assert await client.upload(lease, data, metrics, stop_at=half) is None
        client.socket.transport.abort()
        await client.connect()
        assert list(client.held) == [lease]
        answer = await client.upload(lease, data, metrics)
        assert answer["type"] == "upload.accepted"
        assert half <= client.began_at < len(data)

        lease = await client.take()
        answer = await client.upload(lease, *await client.work(client.held[lease]))
        assert answer["type"] == "upload.accepted"
        published = (await until_event(bus, "shop", ModelPublished)).event.data
        await client.leave()
    assert isinstance(published, ModelPublished)
    base, model = [np.frombuffer(await bus.objects.get(ref), "<f4") for ref in (started.base_model, published.model)]
    submitted = of(await events(bus, "shop"), UpdateSubmitted)
    deltas = [decode_update(await bus.objects.get(one.update), encoding, base.size) for one in submitted]
    weights = [one.metrics.examples for one in submitted]
    np.testing.assert_allclose(model - base, np.average(deltas, axis=0, weights=weights), atol=1e-6)
    assert {one.client for one in submitted} == {"stranger"}


async def test_the_client_as_it_is_run_does_task_after_task(nats: EmbeddedServer, bus: Bus, tmp_path: Path) -> None:
    async with (
        asyncio.timeout(60),
        running(nats, "labeller", "dispatcher", "aggregator"),
        gateway(bus, tmp_path) as url,
    ):
        await start_run(bus, "shop", small(users=3), RunSources())
        await bus.publish(RoundStarted(run="shop", round=1))
        working = asyncio.create_task(documented_client.main(url, TOKEN))
        published = (await until_event(bus, "shop", ModelPublished)).event.data
        working.cancel()
    assert isinstance(published, ModelPublished)
    assert published.updates == 3


async def test_web_socket_pings_do_not_count_as_life_and_the_message_ping_does(bus: Bus, tmp_path: Path) -> None:
    async with asyncio.timeout(DEADLINE_S), gateway(bus, tmp_path, heartbeat_s=0.3) as url:
        silent, alive = Client(url, TOKEN, "silent"), Client(url, TOKEN, "alive")
        await silent.connect()
        await alive.connect()
        silent.pinging.cancel()
        while silent.socket.close_code is None:
            with contextlib.suppress(websockets.ConnectionClosed):
                await (await silent.socket.ping())
            with contextlib.suppress(TimeoutError, websockets.ConnectionClosed):
                await asyncio.wait_for(silent.socket.recv(), 0.1)
        assert (silent.socket.close_code, silent.socket.close_reason) == (1008, "silence")
        await alive.hear("pong")
        await alive.leave()
        assert (alive.socket.close_code, alive.socket.close_reason) == (1000, "goodbye")


async def test_the_client_as_it_is_run_ends_when_another_has_its_name(bus: Bus, tmp_path: Path) -> None:
    async with asyncio.timeout(DEADLINE_S), gateway(bus, tmp_path) as url:
        working = asyncio.create_task(documented_client.main(url, TOKEN, "same"))
        while not working.done():
            # Whoever comes first is replaced by the other.
            with contextlib.suppress(websockets.ConnectionClosed):
                other = Client(url, TOKEN, "same")
                await other.connect()
                await asyncio.wait({working}, timeout=1)
                await other.leave()
        await working


async def test_the_client_as_it_is_run_ends_for_a_wrong_token(bus: Bus, tmp_path: Path) -> None:
    async with asyncio.timeout(DEADLINE_S), gateway(bus, tmp_path) as url:
        with pytest.raises(Refused, match="token"):
            await documented_client.main(url, "guessed")


def test_the_client_encodes_to_the_bytes_on_the_page() -> None:
    numbers = re.search(r"The update \[(.*?)\]", PAGE)
    assert numbers is not None
    delta = np.array(json.loads(f"[{numbers[1]}]"), np.float32)
    shown = re.findall(r"^\| `(float\d+|int8|topk:[\d.]+)` \| `([0-9a-f ]+)` \|$", PAGE, re.MULTILINE)
    assert len(shown) == 4
    for encoding, text in shown:
        assert encoded(delta, encoding) == bytes.fromhex(text), encoding


def test_the_client_augments_to_the_pixels_on_the_page() -> None:
    mixed = re.search(r"`mix\(1\) = (\d+)`", PAGE)
    image = re.search(r"The image `(.*?)`.*?\nwith seed (\d+)", PAGE)
    spec = next(one for one in map(json.loads, re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)) if "epochs" in one)
    copies = [json.loads(line) for line in re.findall(r"^copy \d+: (.*)$", PAGE, re.MULTILINE)]
    assert mixed is not None
    assert image is not None
    assert mix(1) == int(mixed[1])
    pixels = np.array(json.loads(image[1]), np.uint8)[..., None]
    made = augmented(pixels, 0, int(image[2]), spec | {"augmentations": len(copies)})
    assert [one[..., 0].tolist() for one in made] == copies
    assert len(copies) == 2


async def test_a_chunk_that_is_refused_leaves_the_upload_where_it_was(
    nats: EmbeddedServer, bus: Bus, tmp_path: Path
) -> None:
    async with (
        asyncio.timeout(60),
        running(nats, "labeller", "dispatcher"),
        gateway(bus, tmp_path) as url,
    ):
        await start_run(bus, "shop", small(users=1), RunSources())
        await bus.publish(RoundStarted(run="shop", round=1))
        client = Client(url, TOKEN, "clumsy")
        await client.connect()
        lease = await client.take()
        data, metrics = await client.work(client.held[lease])
        begin = {"lease": lease, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        await client.say("upload.begin", upload=7, **begin)
        assert (await client.hear("upload.offset"))["offset"] == 0
        for number, offset, chunk, code in (
            (7, 0, b"", "bad_chunk"),
            (7, 1, data[1:], "bad_offset"),
            (7, 0, data + b"!", "too_large"),
            (8, 0, data, "unknown_upload"),
        ):
            await client.socket.send(struct.pack("<IQ", number, offset) + chunk)
            with pytest.raises(Refused, match=code):
                await client.hear("upload.offset")
        await client.say("upload.commit", lease=lease, upload=7, metrics=metrics)
        with pytest.raises(Refused, match="incomplete"):
            await client.hear("upload.accepted")
        await client.say("upload.begin", upload=7, **begin)
        with pytest.raises(Refused, match="upload_number"):
            await client.hear("upload.offset")
        await client.socket.send(struct.pack("<IQ", 7, 0) + data)
        assert (await client.hear("upload.offset"))["offset"] == len(data)
        await client.say("upload.commit", lease=lease, upload=7, metrics=metrics)
        await client.hear("upload.accepted")
        await client.say("upload.begin", upload=9, **begin)
        await client.hear("upload.accepted")
        await client.leave()


async def test_a_page_of_another_origin_hears_403(bus: Bus, tmp_path: Path) -> None:
    async with asyncio.timeout(DEADLINE_S), gateway(bus, tmp_path) as url:
        address = url.replace("http", "ws", 1) + "/ws"
        with pytest.raises(websockets.InvalidStatus, match="403"):
            await websockets.connect(address, origin=websockets.Origin("https://elsewhere.example"))
