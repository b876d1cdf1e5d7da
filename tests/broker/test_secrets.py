"""A run on real processes: its recording replays to the last score, and no secret is in anything that it leaves."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gzip
import os
import stat
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import nats
import pytest
import pytest_asyncio

from agents.audit.replay import ROLES
from agents.cli.client_mix import ClientMix
from agents.cli.options import make_config
from agents.cli.run_setup import RunSources, start_run
from agents.cli.system import System, running_system
from agents.runtime.shipped import DEFAULT_ARTIFACTS
from agents.words.events import RoundStarted, RunFinished
from agents.words.run_config import LabellingSpec, RunConfig
from artifacts.manifest import load_manifest
from bus.broker.settings import BusSettings
from bus.broker.topology import DLQ_STREAM, TOKEN_STREAM
from bus.client import Bus
from bus.words.subjects import EVENT_STREAM, events_of_type
from bus.words.tokens import new_token
from tests.chaos.system import environment
from tests.conftest import wait_for
from tests.unit.agents.labeller.label_server import LabelServer, label_server

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(240)]
JOIN, API_KEY, GUESS = "join-7f3a9c5be1", "sk-4e8d2b6a90c1f357", "guess-a1b2c3d4e5f6"
GOOD, BAD = "good", "refused"
RUN_S = 120.0


@dataclass(frozen=True)
class Left:
    """What the runs left: files, messages and outputs by name, and the secrets that were used."""

    texts: dict[str, bytes]
    secrets: dict[str, str]
    folder: Path


def config(run: str) -> RunConfig:
    """The default task, labelled by a model that nothing is remembered of."""
    small = make_config(artifacts=DEFAULT_ARTIFACTS, users=3, images=2, rounds=1, seed=0, quorum=1.0)
    return small.model_copy(update={"labelling": LabellingSpec(provider="openai", model=f"model-{run}")})


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def left(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Left]:
    """A run that is labelled over HTTP and trained by a client, one whose key is refused, and everything about them."""
    folder = tmp_path_factory.mktemp("secrets")
    with label_server(*load_manifest(DEFAULT_ARTIFACTS).model.classes) as server:
        variables = {
            "FEDBUS_GATEWAY_JOIN_TOKEN": JOIN,
            "OPENAI_API_KEY": API_KEY,
            "OPENAI_BASE_URL": server.url,
            "XDG_CACHE_HOME": str(folder / "cache"),
        }
        with environment(variables):
            async with running_system(folder / "store", folder / "logs", nats_port=None, gateway_port=0) as system:
                yield await use(system, server, folder)


async def use(system: System, server: LabelServer, folder: Path) -> Left:
    token, record = new_token("watch")
    connection = system.connection
    system.start_clients(ClientMix(native=1))
    guessing = [sys.executable, "-m", "agents.client", "--gateway", connection.gateway_url, "--name", "guessing"]
    texts = {"guessing": await run(os.environ | {"FEDBUS_GATEWAY_JOIN_TOKEN": GUESS}, *guessing)}
    async with Bus.connect(connection.settings(), name="test", wait_s=10) as bus:
        await bus.tokens.put(record)
        await finished(bus, GOOD)
        server.script.append("401")
        await finished(bus, BAD)
        # What nobody understands lies on the dead letters, with what is said of it.
        await bus.connection.js.publish(f"ev.{GOOD}.run.started", b"nonsense")
        await wait_for(bus.dead_letters)
        env = os.environ | connection.env("cli") | {"FEDBUS_LOG_JSON": "1"}
        for name, arguments in {
            "record": ("record", GOOD, "-o", str(folder / "run.jsonl.gz"), "--include", "all"),
            "replay": ("replay", str(folder / "run.jsonl.gz")),
            "report": ("report", GOOD, "-o", str(folder / "report")),
            "report of the refused": ("report", BAD, "-o", str(folder / "report-refused")),
            "verify": ("verify", GOOD),
            "watch": ("watch", GOOD),
            "watch of the refused": ("watch", BAD),
            "dlq": ("dlq", "list"),
            "tokens": ("token", "list"),
            "refused by the broker": ("verify", GOOD),
        }.items():
            wrong = {"NATS_PASSWORD": GUESS} if name == "refused by the broker" else {}
            texts[name] = await run(env | wrong, sys.executable, "-m", "agents.cli", *arguments)
    texts |= await messages(connection.settings())
    for path in (*folder.rglob("*.log"), *folder.glob("report*/*"), *folder.rglob("gateway.url")):
        texts[str(path.relative_to(folder))] = path.read_bytes()
    assert (folder / "run.jsonl.gz").exists(), texts["record"].decode()
    texts["run.jsonl.gz"] = gzip.decompress((folder / "run.jsonl.gz").read_bytes())
    passwords = {f"password of {role}": password for role, password in connection.passwords.items()}
    secrets = {"join token": JOIN, "API key": API_KEY, "guess": GUESS, "token": token.split("_", 2)[2], **passwords}
    return Left(texts, secrets, folder)


async def finished(bus: Bus, run: str) -> None:
    await start_run(bus, run, config(run), RunSources())
    await bus.publish(RoundStarted(run=run, round=1))
    done = await wait_for(lambda: bus.find(events_of_type("run.finished", run)), within_s=RUN_S)
    assert isinstance(done.event.data, RunFinished)
    assert done.event.data.status == ("completed" if run == GOOD else "failed")


async def run(env: dict[str, str], *arguments: str) -> bytes:
    """What a program says until it ends."""
    process = await asyncio.create_subprocess_exec(
        *arguments,
        env=env,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(60):
        said, _ = await process.communicate()
    return said


async def messages(settings: BusSettings) -> dict[str, bytes]:
    """Every message of every stream as the broker has it; the objects are in the recording."""
    found = {}
    assert settings.password is not None
    client = await nats.connect(settings.url, user=settings.user, password=settings.password.get_secret_value())
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(client.close)
        for stream in (EVENT_STREAM, DLQ_STREAM, TOKEN_STREAM):
            state = (await client.jetstream().stream_info(stream)).state
            for sequence in range(state.first_seq, state.last_seq + 1):
                message = await client.jetstream().get_msg(stream, sequence, direct=True)
                found[f"{stream} {sequence}"] = (message.data or b"") + repr(message.headers).encode()
    return found


def holding(texts: dict[str, bytes], secret: str) -> list[str]:
    """The names of what holds a secret, as it is or in a common disguise."""
    shapes = {secret.encode(), quote(secret).encode(), base64.b64encode(secret.encode()).rstrip(b"=")}
    return [name for name, text in texts.items() if any(shape in text for shape in shapes)]


async def test_no_secret_is_in_a_log_an_event_a_report_or_an_output(left: Left) -> None:
    assert [(name, place) for name, secret in left.secrets.items() for place in holding(left.texts, secret)] == []


async def test_the_search_would_have_found_them(left: Left) -> None:
    names = set(left.texts)
    assert {"logs/labeller.log", "logs/gateway.log", "logs/native-1.log", "guessing"} <= names
    assert {"report/report.html", "report/report.json", "run.jsonl.gz", "EVENTS 1", "DLQ 1", "TOKENS 1"} <= names
    assert b"[gateway_refused]" in left.texts["guessing"]
    assert b"401" in left.texts["logs/labeller.log"]
    assert b"images.labelled" in left.texts["run.jsonl.gz"]
    for name, text in left.texts.items():
        for secret in (API_KEY, base64.b64encode(API_KEY.encode()).decode()):
            assert holding({name: text + secret.encode()}, API_KEY) == [name]


async def test_what_holds_secrets_on_purpose_is_its_owners_alone(left: Left) -> None:
    config = left.folder / "store" / "nats" / "nats-server.conf"
    assert any(secret.encode() in config.read_bytes() for secret in left.secrets.values())
    assert stat.S_IMODE(config.stat().st_mode) == 0o600


async def test_the_recording_with_everything_replays_to_the_last_score(left: Left) -> None:
    said = left.texts["replay"].decode()
    assert "the same bits as recorded" in said, said
    assert "--include all" not in said
    for role in ROLES:
        assert f"{role} " in said
    assert said.count("none differ") == len(ROLES)
