"""``fedbus verify`` on a live bus: a sound run passes, and each thing that is broken afterwards is found."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import nats as nats_client
import numpy as np
import pytest
import pytest_asyncio

from agents.audit.replay import replay_run
from agents.audit.verify import verify_run
from agents.cli.run_setup import RunSources, start_run
from agents.words.events import ModelPublished, RoundStarted, UpdateSubmitted
from agents.words.run_config import RunConfig
from bus.broker.server import EmbeddedServer, embedded_server
from bus.broker.topology import OBJECT_STREAM
from bus.client import Bus
from bus.recording.files import needed
from bus.words.subjects import events_of
from tests.broker.test_agents import BODIES, DEADLINE_S, answer_all, events, of, running, small


@pytest_asyncio.fixture
async def nats(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EmbeddedServer]:
    """A broker of the test's own, since it is damaged."""
    async with embedded_server(tmp_path_factory.mktemp("verify")) as server:
        yield server


async def finished(nats: EmbeddedServer, bus: Bus, run: str, config: RunConfig | None = None) -> None:
    async with running(nats, *BODIES):
        await start_run(bus, run, config or small(), RunSources())
        await bus.publish(RoundStarted(run=run, round=1))
        async with asyncio.timeout(DEADLINE_S):
            await answer_all(bus, run)


async def codes(bus: Bus, run: str) -> set[str]:
    return {problem.code for problem in (await verify_run(bus, run)).problems}


async def purge(nats: EmbeddedServer, stream: str, subject: str) -> None:
    connection = await nats_client.connect(nats.url, token=nats.token)
    await connection.jetstream().purge_stream(stream, subject=subject)
    await connection.close()


async def test_the_fate_of_every_update_and_image_is_checked(nats: EmbeddedServer, bus: Bus, unique_run: str) -> None:
    """The test's updates claim one mismatch whatever was predicted: the ledger does not believe them."""
    await finished(nats, bus, unique_run)
    verdict = await verify_run(bus, unique_run)
    assert (verdict.updates, verdict.models, verdict.images) == (4, 1, 20)
    assert {problem.code for problem in verdict.problems} == {"decision"}


@pytest.mark.parametrize("kind", [UpdateSubmitted, ModelPublished])
async def test_an_object_that_is_gone_is_found(
    nats: EmbeddedServer, bus: Bus, unique_run: str, kind: type[UpdateSubmitted] | type[ModelPublished]
) -> None:
    await finished(nats, bus, unique_run)
    first = of(await events(bus, unique_run), kind)[0]
    ref = first.update if isinstance(first, UpdateSubmitted) else first.model
    stored = await bus.objects.info(ref.name)
    assert stored is not None
    await purge(nats, OBJECT_STREAM, "$O.objects.C.>")
    assert "object" in await codes(bus, unique_run)


async def test_a_message_that_is_no_event_is_accounted_for_and_not_a_gap(
    nats: EmbeddedServer, bus: Bus, unique_run: str
) -> None:
    connection = await nats_client.connect(nats.url, token=nats.token)
    await connection.jetstream().publish("ev.someone.elses.words", b"no event")
    await connection.close()
    await finished(nats, bus, unique_run)
    assert "sequence_gap" not in await codes(bus, unique_run)
    assert [letter.subject for letter in await bus.dead_letters()] == ["ev.someone.elses.words"]


async def test_a_dead_letter_of_no_event_says_nothing_of_the_stream(
    nats: EmbeddedServer, bus: Bus, unique_run: str
) -> None:
    connection = await nats_client.connect(nats.url, token=nats.token)
    await connection.jetstream().publish("dlq.900000000000000000", b"no event")
    await connection.close()
    await finished(nats, bus, unique_run)
    assert "sequence_gap" not in await codes(bus, unique_run)


async def test_a_run_whose_store_was_collected_verifies_as_before(
    nats: EmbeddedServer, bus: Bus, unique_run: str
) -> None:
    await finished(nats, bus, unique_run)
    stray = await bus.objects.put(b"named by nobody")
    async with contextlib.aclosing(bus.expired_objects(0)) as refs:
        assert stray.sha256 in [ref.sha256 async for ref in refs]
    verdict = await verify_run(bus, unique_run)
    assert (verdict.updates, verdict.models, verdict.images) == (4, 1, 20)
    assert {problem.code for problem in verdict.problems} == {"decision"}


async def test_a_run_that_clips_has_a_model_within_the_norm_and_its_ledger_holds(
    nats: EmbeddedServer, bus: Bus, unique_run: str
) -> None:
    limit = 0.5
    await finished(nats, bus, unique_run, small().model_copy(update={"max_update_norm": limit, "over_norm": "clip"}))
    stream = await events(bus, unique_run)
    (published,) = of(stream, ModelPublished)
    parts = [np.frombuffer(await bus.objects.get(ref), "<f4") for ref in (published.parent, published.model)]
    # Updates of a norm of almost 1 that all point the same way.
    assert np.linalg.norm(np.diff(parts, axis=0)) == pytest.approx(limit, rel=1e-5)
    assert {problem.code for problem in (await verify_run(bus, unique_run)).problems} == {"decision"}
    objects = {ref.sha256: await bus.objects.get(ref) async for ref in needed(bus, stream, "replay")}
    assert replay_run(stream, objects, roles=["aggregator"]).differences == []


@pytest.mark.parametrize("strategy", ["fedavg", "fedadam"])
async def test_a_run_that_clips_to_the_median_has_a_ledger_that_holds_and_replays(
    nats: EmbeddedServer, bus: Bus, unique_run: str, strategy: str
) -> None:
    settings = small(strategy=strategy).model_copy(update={"clip_to_median": 0.5})
    await finished(nats, bus, unique_run, settings)
    stream = await events(bus, unique_run)
    (published,) = of(stream, ModelPublished)
    norms = sorted(one.norm for one in of(stream, UpdateSubmitted))
    assert published.clip_norm == 0.5 * norms[len(norms) // 2]
    if strategy == "fedavg":
        parts = [np.frombuffer(await bus.objects.get(ref), "<f4") for ref in (published.parent, published.model)]
        # All updates point the same way.
        assert np.linalg.norm(np.diff(parts, axis=0)) == pytest.approx(published.clip_norm, rel=1e-5)
    assert {problem.code for problem in (await verify_run(bus, unique_run)).problems} == {"decision"}
    objects = {ref.sha256: await bus.objects.get(ref) async for ref in needed(bus, stream, "replay")}
    assert replay_run(stream, objects, roles=["aggregator"]).differences == []


async def test_the_whole_run_is_read(nats: EmbeddedServer, bus: Bus, unique_run: str) -> None:
    await finished(nats, bus, unique_run)
    async with bus.follow(events_of(unique_run), live=False) as items:
        count = len([item async for item in items if hasattr(item, "event")])
    assert (await verify_run(bus, unique_run)).events == count
