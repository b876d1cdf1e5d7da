"""Uploads and downloads through the gateway, beside plain HTTP PUT and GET of the same bytes with the same server.

The gateway is a process of its own; its memory is read while ``--clients`` uploads go on at once (``--full``: eight
of 346 MB, the size of a fully trained ViT-base).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import numpy as np
from websockets.asyncio.client import connect

from agents.core.exchange.messages import (
    MAX_CHUNK_BYTES,
    Assignment,
    Hello,
    Ready,
    UploadAccepted,
    UploadBegin,
    UploadCommit,
    UploadOffset,
    encode_chunk,
    parse_server_message,
)
from agents.core.learning.augment import default_augmentation
from agents.words.events import RoundPlanned, RunStarted, TaskAssigned, UpdateMetrics
from agents.words.run_config import QuorumSpec, RunConfig, RunDataset, TrainingSpec, UserShard
from benchmarks.common import report
from bus.broker.server import embedded_server
from bus.client import Bus
from bus.words.values import Ref
from data.shards import encode_shard

WINDOW = 4
START_S = 60.0
PLAIN_SERVER = """
import sys, uvicorn
from starlette.applications import Starlette
from starlette.responses import FileResponse, Response
from starlette.routing import Route

async def put(request):
    with open(sys.argv[2], "wb") as file:
        async for chunk in request.stream():
            file.write(chunk)
    return Response(status_code=204)

async def get(request):
    return FileResponse(sys.argv[2])

app = Starlette(routes=[Route("/", put, methods=["PUT"]), Route("/", get)])
uvicorn.run(app, port=int(sys.argv[1]), log_level="error", access_log=False)
"""


def peak_memory_mb(pid: int) -> float:
    """Largest resident memory of a process so far, without the pages of mapped files."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    return int(status["RssAnon"].split()[0]) / 1024


@contextlib.asynccontextmanager
async def process(*argv: str, **env: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A child that ends with the block."""
    child = await asyncio.create_subprocess_exec(*argv, env={**os.environ, **env})
    try:
        yield child
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.terminate()
        await child.wait()


async def started_run(bus: Bus, parameters: int, users: int) -> Ref:
    """A run whose updates have this many parameters, with a task for each user; its base model."""
    shard = await bus.objects.put(encode_shard(np.zeros((1, 2, 2, 1), np.uint8)))
    base = await bus.objects.put(np.zeros(parameters, "<f4").tobytes())
    names = [f"u{index}" for index in range(users)]
    dataset = RunDataset(
        classes=("a", "b"), users=tuple(UserShard(user=name, shard=shard) for name in names), held_out=shard
    )
    config = RunConfig(
        users=users, rounds=1, quorum=QuorumSpec(), training=TrainingSpec(augmentation=default_augmentation())
    )
    ref = await bus.objects.put(dataset.model_dump_json().encode())
    await bus.publish(
        RunStarted(
            run="bench",
            config=config,
            config_digest="0" * 64,
            dataset=ref,
            artifacts=shard,
            base_model=base,
            users=users,
        )
    )
    plan = RoundPlanned.model_validate(
        {
            "run": "bench",
            "round": 1,
            "base_model": base,
            "spec": shard,
            "users": users,
            "quorum": users,
            "learning_rate": 0.1,
            "deadline": "2100-01-01T00:00:00Z",
            "deadline_s": 3600,
        }
    )
    await bus.publish(plan)
    await bus.publish_many(
        TaskAssigned(run="bench", round=1, user=name, shard=shard, labels=(0,), spec=shard, seed=1) for name in names
    )
    return base


async def upload(url: str, name: str, data: memoryview, digest: str) -> float:
    """Seconds from the announcement to the last byte that the gateway has; waits for its answer, too."""
    async with connect(url.replace("http", "ws", 1) + "/ws", compression=None, max_size=None) as socket:
        await socket.send(Hello(protocol=1, client=name, engine="bench").model_dump_json())
        parse_server_message(str(await socket.recv()))
        await socket.send(Ready().model_dump_json())
        assignment = parse_server_message(str(await socket.recv()))
        assert isinstance(assignment, Assignment)
        began = time.perf_counter()
        begin = UploadBegin(lease=assignment.lease, upload=1, size=len(data), sha256=digest)
        await socket.send(begin.model_dump_json())
        offset = parse_server_message(str(await socket.recv()))
        assert isinstance(offset, UploadOffset)
        sent = acknowledged = 0
        while acknowledged < len(data):
            while sent < len(data) and sent - acknowledged < WINDOW * MAX_CHUNK_BYTES:
                await socket.send(encode_chunk(1, sent, data[sent : sent + MAX_CHUNK_BYTES]))
                sent = min(len(data), sent + MAX_CHUNK_BYTES)
            answer = parse_server_message(str(await socket.recv()))
            assert isinstance(answer, UploadOffset)
            acknowledged = answer.offset
        seconds = time.perf_counter() - began
        metrics = UpdateMetrics(predictions=(0,), examples=1, mismatched_images=0, trained_images=0)
        await socket.send(UploadCommit(lease=assignment.lease, upload=1, metrics=metrics).model_dump_json())
        assert isinstance(parse_server_message(str(await socket.recv())), UploadAccepted)
        return seconds


async def download(http: httpx.AsyncClient, path: str) -> float:
    """Seconds for a GET whose bytes are thrown away."""
    began = time.perf_counter()
    async with http.stream("GET", path) as answer:
        answer.raise_for_status()
        async for _ in answer.aiter_bytes(1 << 20):
            pass
    return time.perf_counter() - began


async def plain(folder: Path, data: bytes) -> tuple[float, float]:
    """Seconds of a plain PUT and GET."""
    with contextlib.closing(__import__("socket").socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    async with (
        process(sys.executable, "-c", PLAIN_SERVER, str(port), str(folder / "plain")),
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=START_S) as http,
    ):
        async with asyncio.timeout(START_S):
            while True:
                with contextlib.suppress(httpx.ConnectError):
                    await http.put("/", content=b"x")
                    break
                await asyncio.sleep(0.05)
        began = time.perf_counter()
        (await http.put("/", content=data)).raise_for_status()
        return time.perf_counter() - began, await download(http, "/")


async def measure(megabytes: int, clients: int) -> None:
    """Prints both tables and writes their JSON."""
    parameters = megabytes * 250_000
    data = np.random.default_rng(0).normal(0, 0.01, parameters).astype("<f4").tobytes()
    digest = hashlib.sha256(data).hexdigest()
    with tempfile.TemporaryDirectory(prefix="fedbus-bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        put_s, get_s = await plain(folder, data)
        url_file = folder / "url"
        env = {
            "FEDBUS_GATEWAY_PORT": "0",
            "FEDBUS_GATEWAY_URL_FILE": str(url_file),
            "FEDBUS_GATEWAY_SPOOL_DIR": str(folder / "spool"),
        }
        async with embedded_server(folder / "nats") as server, Bus.connect(server.settings, name="bench") as bus:
            base = await started_run(bus, parameters, clients + 1)
            own = {"NATS_URL": server.url, "NATS_TOKEN": server.token}
            async with process(sys.executable, "-m", "agents.gateway", **env, **own) as gateway:
                async with asyncio.timeout(START_S):
                    while not url_file.exists():  # noqa: ASYNC110 - another process makes it
                        await asyncio.sleep(0.05)
                url = url_file.read_text().strip()
                before = peak_memory_mb(gateway.pid)
                up_s = await upload(url, "one", memoryview(data), digest)
                async with httpx.AsyncClient(base_url=url, timeout=START_S) as http:
                    down_s = await download(http, f"/objects/{base.sha256}")
                peak = before
                async with asyncio.TaskGroup() as group:
                    many = [
                        group.create_task(upload(url, f"c{index}", memoryview(data), digest))
                        for index in range(clients)
                    ]
                    while not all(one.done() for one in many):
                        peak = max(peak, peak_memory_mb(gateway.pid))
                        await asyncio.sleep(0.05)
    size = len(data) / 1e6
    memory = {"gateway_memory_mb": peak, "gateway_memory_idle_mb": before, "uploads_at_once": clients}
    goal = "at least half of the plain server's"
    report("gateway_upload", ours=size / up_s, reference=size / put_s, unit="MB/s", goal=goal, megabytes=size, **memory)
    report("gateway_download", ours=size / down_s, reference=size / get_s, unit="MB/s", goal=goal, megabytes=size)


def main() -> None:
    """Measures 64 MB by default."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=64)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--full", action="store_true", help="346 MB, as of a fully trained ViT-base")
    arguments = parser.parse_args()
    asyncio.run(measure(346 if arguments.full else arguments.megabytes, arguments.clients))


if __name__ == "__main__":
    main()
