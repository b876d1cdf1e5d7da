"""A round that cannot be started, and a name that is taken, are refused in words, whoever asks and however."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from typer.testing import CliRunner

from agents.cli import lookout, runs
from agents.cli.finding import RunUnknownError
from agents.cli.main import app
from agents.cli.runs import RoundRefusedError, RunNameTakenError, RunRefusedError, check_free
from agents.dispatcher import service as dispatcher
from agents.labeller import service as labeller
from agents.runtime.tasks import background
from agents.words.events import ModelPublished, RoundFailed, RoundStarted, RunFinished
from bus.broker.server import EmbeddedServer, embedded_server
from bus.client import Bus
from bus.stream.dead_letters import DeadLetter
from bus.words.payload import Payload
from tests.builders import ANY_REF, BASE_REF, config, run_started
from tests.conftest import wait_for

RUN = "shop"
PUBLISHED = ModelPublished(
    run=RUN,
    round=1,
    model=BASE_REF,
    parent=BASE_REF,
    inputs_digest=ANY_REF.sha256,
    strategy="fedavg",
    updates=1,
    examples=1,
)


@pytest_asyncio.fixture
async def bus(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bus]:
    """The bus of a broker of this test's own, which the commands use as well."""
    server: EmbeddedServer
    async with embedded_server(tmp_path_factory.mktemp("rounds")) as server:
        assert server.settings.token is not None
        monkeypatch.setenv("NATS_URL", server.settings.url)
        # Nobody is at work here, and nobody need wait for that.
        monkeypatch.setattr(lookout, "QUIET_S", 0.1)
        monkeypatch.setenv("NATS_TOKEN", server.settings.token.get_secret_value())
        async with Bus.connect(server.settings, name="test", wait_s=10) as connected:
            yield connected


async def started(bus: Bus, *events: Payload) -> None:
    """A run of three rounds, and what else was said of it."""
    for data in (run_started(config(rounds=3)).model_copy(update={"run": RUN}), *events):
        await bus.publish(data)


ENDED = [RunFinished(run=RUN, status=status, reason="why", rounds=0) for status in ("completed", "failed", "cancelled")]
REFUSED: list[tuple[tuple[Payload, ...], int, str]] = [
    *(((end,), 1, f"run shop is {end.status}: why") for end in ENDED),
    ((), 4, "run shop has 3 rounds, there is no round 4"),
    ((), 2, "round 2 of run shop cannot come next: round 1 has no model yet"),
    ((RoundStarted(run=RUN, round=1), PUBLISHED), 3, "cannot come next: round 2 has no model yet"),
    ((RoundFailed(run=RUN, round=1, reason="no quorum"),), 1, "round 1 of run shop has failed: no quorum"),
]


@pytest.mark.parametrize(("before", "number", "words"), REFUSED)
async def test_a_round_that_cannot_be_started_is_refused_before_anything_is_published(
    bus: Bus, before: tuple[Payload, ...], number: int, words: str
) -> None:
    await started(bus, *before)
    last = await bus.last_sequence()
    result = await asyncio.to_thread(CliRunner().invoke, app, ["round", "start", RUN, "--round", str(number)])
    assert isinstance(result.exception, RoundRefusedError)
    assert words in result.exception.message
    assert await bus.last_sequence() == last


async def test_a_round_of_a_run_that_nobody_started_is_refused(bus: Bus) -> None:
    result = await asyncio.to_thread(CliRunner().invoke, app, ["round", "start", RUN])
    assert isinstance(result.exception, RunUnknownError)
    assert await bus.last_sequence() == 0


async def test_a_round_that_comes_next_is_started_and_once(bus: Bus) -> None:
    await started(bus)
    first = await asyncio.to_thread(CliRunner().invoke, app, ["round", "start", RUN])
    again = await asyncio.to_thread(CliRunner().invoke, app, ["round", "start", RUN])
    assert (first.exit_code, again.exit_code) == (0, 0)
    assert "round 1 of shop started" in first.output
    assert "had been started before" in again.output


async def letters(bus: Bus) -> list[DeadLetter]:
    return await bus.dead_letters()


@pytest.mark.parametrize(("before", "number", "words"), [*REFUSED, (None, 1, "there is no run 'shop' on this bus")])
async def test_a_plain_publisher_finds_the_refusal_among_the_dead_letters(
    bus: Bus, before: tuple[Payload, ...] | None, number: int, words: str
) -> None:
    if before is not None:
        await started(bus, *before)
    event = {
        "specversion": "1.0",
        "id": "1",
        "source": "me",
        "type": "fedbus.round.started",
        "data": {"run": RUN, "round": number},
    }
    stop = asyncio.Event()
    for _ in range(2):
        # What the second dispatcher finds there already, it leaves as it is.
        async with asyncio.TaskGroup() as group:
            group.create_task(dispatcher.serve(bus, stop))
            if await bus.find(f"ev.{RUN}.round.started.{number}") is None:
                await bus.connection.js.publish(f"ev.{RUN}.round.started.{number}", json.dumps(event).encode())
            await wait_for(lambda: letters(bus))
            stop.set()
        stop.clear()
    (letter,) = await bus.dead_letters()
    assert words in letter.reason
    assert (letter.subject, letter.consumer) == (f"ev.{RUN}.round.started.{number}", "dispatcher")


async def test_a_round_that_was_asked_for_as_it_should_be_is_no_dead_letter(bus: Bus) -> None:
    stop = asyncio.Event()
    await started(bus, RoundStarted(run=RUN, round=1), PUBLISHED, RoundStarted(run=RUN, round=2))
    await bus.publish(RoundStarted(run="unknown", round=1))
    async with asyncio.TaskGroup() as group:
        group.create_task(dispatcher.serve(bus, stop))
        await wait_for(lambda: letters(bus))
        stop.set()
    assert [one.subject for one in await bus.dead_letters()] == ["ev.unknown.round.started.1"]


@pytest.mark.parametrize("said", [RoundStarted(run=RUN, round=1), ENDED[0]])
async def test_a_name_of_which_anything_was_said_is_taken(bus: Bus, said: Payload) -> None:
    await check_free(bus, RUN)
    await bus.publish(said)
    last = await bus.last_sequence()
    result = await asyncio.to_thread(CliRunner().invoke, app, ["run", "start", "--name", RUN, "--users", "2"])
    assert isinstance(result.exception, RunNameTakenError)
    assert f"the name 'shop' is taken: {said.TYPE}" in result.exception.message
    assert await bus.last_sequence() == last


@pytest.mark.parametrize(
    ("key", "words"), [("", "needs an API key (set OPENAI_API_KEY"), ("sk-“quoted”", "characters that are not ASCII")]
)
async def test_a_run_that_the_labeller_has_no_key_for_ends_at_once_and_its_starter_is_told(
    key: str, words: str, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    command = ["run", "start", "--go", "--name", RUN, "--users", "2", "--rounds", "1", "--labeller", "openai"]
    async with background(labeller.serve(bus, asyncio.Event())):
        result = await asyncio.to_thread(CliRunner().invoke, app, command)
    assert isinstance(result.exception, RunRefusedError)
    assert words in result.exception.message
    assert await bus.find(f"ev.{RUN}.round.started.1") is None
    again = await asyncio.to_thread(CliRunner().invoke, app, ["round", "start", RUN])
    assert isinstance(again.exception, RoundRefusedError)
    assert words in again.exception.message


async def test_a_labeller_that_says_nothing_refuses_nothing(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "REFUSAL_S", 0.2)
    command = ["run", "start", "--go", "--name", RUN, "--users", "2", "--rounds", "1", "--labeller", "openai"]
    result = await asyncio.to_thread(CliRunner().invoke, app, command)
    assert result.exit_code == 0
    assert await bus.find(f"ev.{RUN}.round.started.1") is not None


async def test_run_show_tells_why_a_run_has_failed_with_its_code(bus: Bus) -> None:
    reason = "the model cannot be made: the chunks are gone"
    failed = RoundFailed(run=RUN, round=1, reason=reason, code="object_missing")
    await started(bus, RoundStarted(run=RUN, round=1), failed)
    await bus.publish(RunFinished(run=RUN, status="failed", reason=f"round 1: {reason}", rounds=0))
    shown = await asyncio.to_thread(CliRunner().invoke, app, ["run", "show", RUN])
    assert shown.exit_code == 0
    assert f"failed: round 1: {reason} [object_missing]" in " ".join(shown.output.split())
