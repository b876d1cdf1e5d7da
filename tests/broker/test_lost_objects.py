"""A run whose object is gone or damaged on disk ends with the reason, and the others go on."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from agents.audit.replay import replay_run
from agents.audit.verify import verify_run
from agents.cli.run_setup import RunSources, start_run
from agents.core.views.run import RunView
from agents.evaluator import service as evaluator
from agents.words.events import (
    EvaluationFailed,
    ModelPublished,
    RoundClosed,
    RoundFailed,
    RoundStarted,
    RunFinished,
    TaskAssigned,
    UpdateSubmitted,
)
from agents.words.run_config import RunDataset
from bus.broker.server import embedded_server
from bus.broker.topology import OBJECT_STREAM
from bus.client import Bus
from bus.recording.files import needed
from bus.words.values import Ref
from tests.broker.test_agents import BODIES, DEADLINE_S, Trainer, answer_all, events, of, running, small, until_event
from tests.builders import planned
from tests.conftest import wait_for

ENDING = ("base", "update", "state", "dataset", "held-out")


def flip(store: Path, data: bytes) -> None:
    """Changes one of these bytes, wherever a block of the object stream has them."""
    found = 0
    for block in store.rglob(f"{OBJECT_STREAM}/msgs/*.blk"):
        body, at = bytearray(block.read_bytes()), -1
        while (at := body.find(data[:512], at + 1)) >= 0:
            body[at + 100] ^= 1
            found += 1
        block.write_bytes(body)
    assert found


async def take_out(bus: Bus, ref: Ref) -> None:
    """Purges an object's bytes; what was said of them stays."""
    entry, _ = await bus.objects.bucket.find(ref.name)
    assert entry is not None
    await bus.connection.js.purge_stream(OBJECT_STREAM, subject=f"$O.objects.C.{entry.meta.nuid}")


async def close_unmade(bus: Bus, run: str, base: Ref, delta: float) -> Ref:
    """Has every update of round 1 submitted and the round closed, as by an aggregator that ended then; an update."""
    users = small().users

    async def all_assigned() -> list[TaskAssigned]:
        tasks = of(await events(bus, run), TaskAssigned)
        return tasks if len(tasks) == users else []

    for task in await wait_for(all_assigned):
        await Trainer(bus).submit(task, base, delta)
    stream = await events(bus, run)
    last = stream[-1].sequence
    closed = RoundClosed(run=run, round=1, reason="all", accepted=users, missing=0, rejected=0, through=last)
    await bus.publish(closed)
    update: Ref = of(stream, UpdateSubmitted)[0].update
    return update


@pytest.mark.timeout(120)
async def test_a_lost_object_ends_the_runs_that_need_it_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Between two tries it waits for seconds.
    monkeypatch.setattr(evaluator, "ATTEMPTS", 2)
    store = tmp_path / "nats"
    async with embedded_server(store) as server, Bus.connect(server.settings, name="test", wait_s=10) as bus:
        started = await start_run(bus, "sound", small(), RunSources())
        model = np.frombuffer(await bus.objects.get(started.base_model), "<f4")
        other = (model + np.float32(0.001)).tobytes()
        base = await bus.objects.put(other)
        plain = RunDataset.model_validate_json(await bus.objects.get(started.dataset))
        hidden = b"held out, and somewhere else" * 50
        dataset = plain.model_copy(update={"held_out": await bus.objects.put(hidden)})
        without_held_out = await bus.objects.put(dataset.model_dump_json().encode())
        listed = plain.model_dump_json(indent=1).encode()
        without_dataset = await bus.objects.put(listed)
        async with running(server, "labeller", "dispatcher"):
            await bus.publish(started.model_copy(update={"run": "base", "base_model": base}))
            await bus.publish(started.model_copy(update={"run": "update"}))
            for run in ("base", "update"):
                await bus.publish(RoundStarted(run=run, round=1))
            await close_unmade(bus, "base", base, 0.01)
            lost = await close_unmade(bus, "update", started.base_model, 0.02)
        needs = needed(bus, await events(bus, "base"), "replay")
        objects = {ref.sha256: await bus.objects.get(ref) async for ref in needs}
        await bus.publish(started.model_copy(update={"run": "dataset", "dataset": without_dataset}))
        await bus.publish(started.model_copy(update={"run": "held-out", "dataset": without_held_out}))
        adaptive = started.config.model_copy(update={"strategy": "fedadam"})
        state = await bus.objects.put(b"what the server kept" * 8)
        plan = planned(1, 1).model_copy(
            update={"run": "state", "base_model": started.base_model, "server_state": state}
        )
        for data in (
            started.model_copy(update={"run": "state", "config": adaptive}),
            RoundStarted(run="state", round=1),
            plan,
            RoundClosed(run="state", round=1, reason="deadline", accepted=0, missing=1, rejected=0, through=1),
        ):
            await bus.publish(data)
        for run in ("sound", "held-out"):
            await bus.publish(RoundStarted(run=run, round=1))
    for data in (other, hidden, listed):
        flip(store, data)
    async with embedded_server(store) as server, Bus.connect(server.settings, name="test", wait_s=10) as bus:
        async with asyncio.timeout(DEADLINE_S), running(server, "dispatcher"):
            await until_event(bus, "dataset", RunFinished)
        async with running(server, "aggregator"), asyncio.timeout(DEADLINE_S):
            for ref in (lost, state):
                await take_out(bus, ref)

            async def all_three() -> bool:
                said = [of(await events(bus, run), RoundFailed) for run in ("base", "update", "state")]
                return all(said)

            await wait_for(all_three)
        async with running(server, *BODIES), asyncio.timeout(DEADLINE_S):
            await asyncio.gather(
                *(until_event(bus, run, RunFinished) for run in ("base", "update", "state")),
                *(answer_all(bus, run) for run in ("sound", "held-out")),
            )
        ends = {run: of(await events(bus, run), RunFinished)[0] for run in ENDING}
        for run, name in (("base", base.sha256), ("update", lost.sha256), ("state", state.sha256)):
            (failed,) = of(await events(bus, run), RoundFailed)
            assert failed.code in ("object_missing", "object_corrupt")
            assert failed.reason.startswith("the model cannot be made: ")
            assert name[:8] in failed.reason
            assert (ends[run].status, ends[run].reason) == ("failed", f"round 1: {failed.reason}"[:500])
            view = RunView.of(await events(bus, run))
            assert (view.rounds[1].phase, view.rounds[1].ended) == ("failed", failed.reason)
        assert (ends["dataset"].status, ends["dataset"].reason[:9]) == ("failed", "dataset: ")
        assert ends["held-out"].status == "completed"
        assert {one.round for one in of(await events(bus, "held-out"), EvaluationFailed)} == {0, 1}
        assert len(of(await events(bus, "sound"), ModelPublished)) == 1
        assert of(await events(bus, "sound"), RunFinished)[0].status == "completed"
        for run, what in (("base", "base model"), ("update", "update of")):
            problems = (await verify_run(bus, run)).problems
            assert what in " ".join(one.what for one in problems if one.code == "object")
            assert "failure" not in {one.code for one in problems}
        stream = await events(bus, "base")
        assert replay_run(stream, objects, roles=["dispatcher", "aggregator"]).differences == []
