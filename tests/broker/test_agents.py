"""Labeller, dispatcher, aggregator and evaluator on a real broker; updates come straight from the test."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from agents.aggregator import service as aggregator
from agents.audit.replay import replay_run
from agents.audit.verify import verify_run
from agents.cli.run_setup import RunSources, start_run
from agents.core.learning.encodings import encode_update
from agents.core.strategies.registry import StrategyNotAllowedError, built_in
from agents.core.views.run import RunView
from agents.dispatcher import service as dispatcher
from agents.evaluator import service as evaluator
from agents.labeller import service as labeller
from agents.words.events import (
    EvaluationFailed,
    ImagesLabelled,
    ModelEvaluated,
    ModelPublished,
    RoundClosed,
    RoundFailed,
    RoundPlanned,
    RoundStarted,
    RunFinished,
    RunStarted,
    TaskAssigned,
    UpdateMetrics,
    UpdateRejected,
    UpdateSubmitted,
)
from agents.words.run_config import QuorumSpec, RunConfig, RunDataset
from bus.broker.server import EmbeddedServer, embedded_server
from bus.client import Bus
from bus.errors import FedbusError
from bus.recording.files import needed
from bus.words.envelope import Stored
from bus.words.payload import Payload
from bus.words.subjects import events_of
from bus.words.values import Ref
from tests import faulty_strategy
from tests.builders import config as run_config
from tests.builders import planned
from tests.conftest import wait_for

DEADLINE_S = 60.0


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def nats(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EmbeddedServer]:
    """A broker of this module's own: agents follow the whole stream, and other tests leave odd runs in theirs."""
    async with embedded_server(tmp_path_factory.mktemp("agents")) as server:
        yield server


BODIES: dict[str, Callable[[Bus, asyncio.Event], Coroutine[Any, Any, None]]] = {
    "labeller": labeller.serve,
    "dispatcher": dispatcher.serve,
    "aggregator": aggregator.serve,
    "evaluator": evaluator.serve,
}


@contextlib.asynccontextmanager
async def running(nats: EmbeddedServer, *names: str) -> AsyncIterator[None]:
    """Runs these agents, each on its own connection, until the block ends."""
    stop = asyncio.Event()

    async def one(name: str) -> None:
        async with Bus.connect(nats.settings, name=name, wait_s=10) as bus:
            await BODIES[name](bus, stop)

    async with asyncio.TaskGroup() as group:
        for name in names:
            group.create_task(one(name))
        try:
            yield
        finally:
            stop.set()


def small(rounds: int = 1, users: int = 4, strategy: str = "fedavg", **quorum: float) -> RunConfig:
    return run_config(rounds=rounds, users=users).model_copy(
        update={"images_per_user": 5, "quorum": QuorumSpec.model_validate(quorum), "strategy": strategy}
    )


class Trainer:
    """Answers every assigned task with an update that the test chooses."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def submit(
        self,
        task: TaskAssigned,
        base: Ref,
        delta: float = 0.01,
        *,
        data: bytes | None = None,
        encoding: str = "float32",
    ) -> None:
        values = np.full(base.size // 4, delta, np.float32)
        update = await self._bus.objects.put(encode_update(values, "float32") if data is None else data)
        metrics = UpdateMetrics(
            predictions=tuple(0 for _ in task.labels), examples=5, mismatched_images=1, trained_images=7
        )
        await self._bus.publish(
            UpdateSubmitted(
                run=task.run,
                round=task.round,
                user=task.user,
                base_model=base.sha256,
                update=update,
                encoding=encoding,
                metrics=metrics,
                client="trainer",
                engine="test",
                norm=float(np.linalg.norm(values.astype(np.float64))) if data is None else 1.0,
            )
        )


async def until_event(bus: Bus, run: str, *kinds: type[Payload], after: int = 0) -> Stored:
    """The first event of one of these kinds."""
    async with asyncio.timeout(DEADLINE_S), bus.follow(events_of(run), after=after) as items:
        async for item in items:
            if isinstance(item, Stored) and isinstance(item.event.data, kinds):
                return item
    raise AssertionError


async def answer_all(bus: Bus, run: str, *, skip: str = "") -> None:
    """Submits an update for each task of the run, until the run is finished."""
    trainer, bases = Trainer(bus), {}
    async with bus.follow(events_of(run)) as items:
        async for item in items:
            data = item.event.data if isinstance(item, Stored) else None
            if isinstance(data, RoundPlanned):
                bases[data.round] = data.base_model
            elif isinstance(data, TaskAssigned) and data.user != skip:
                await trainer.submit(data, bases[data.round])
            elif isinstance(data, RunFinished):
                return


async def events(bus: Bus, run: str) -> list[Stored]:
    async with bus.follow(events_of(run), live=False) as items:
        return [item async for item in items if isinstance(item, Stored)]


def of(stream: list[Stored], *kinds: type[Payload]) -> list[Any]:
    return [one.event.data for one in stream if isinstance(one.event.data, kinds)]


async def test_a_run_goes_from_its_start_to_its_end(nats: EmbeddedServer, bus: Bus, unique_run: str) -> None:
    async with running(nats, *BODIES):
        await start_run(bus, unique_run, small(rounds=2), RunSources())
        await bus.publish(RoundStarted(run=unique_run, round=1))
        async with asyncio.timeout(DEADLINE_S):
            await answer_all(bus, unique_run)
    stream = await events(bus, unique_run)
    (finished,) = of(stream, RunFinished)
    models = of(stream, ModelPublished)
    assert (finished.status, finished.rounds, finished.final_model) == ("completed", 2, models[-1].model)
    assert [one.round for one in of(stream, ModelEvaluated)] == [0, 1, 2]
    assert models[1].parent == models[0].model
    parent = np.frombuffer(await bus.objects.get(models[0].parent), "<f4")
    model = np.frombuffer(await bus.objects.get(models[0].model), "<f4")
    np.testing.assert_allclose(model - parent, 0.01, atol=1e-6)


@pytest.mark.parametrize("strategy", sorted(built_in()))
async def test_every_strategy_makes_the_models_that_its_ledger_and_its_replay_give(
    nats: EmbeddedServer, bus: Bus, unique_run: str, strategy: str
) -> None:
    async with running(nats, *BODIES):
        await start_run(bus, unique_run, small(rounds=3, strategy=strategy), RunSources())
        await bus.publish(RoundStarted(run=unique_run, round=1))
        async with asyncio.timeout(DEADLINE_S):
            await answer_all(bus, unique_run)
    stream = await events(bus, unique_run)
    models, plans = of(stream, ModelPublished), of(stream, RoundPlanned)
    keeps_state = bool(built_in()[strategy].VECTORS)
    assert [one.strategy for one in models] == [strategy] * 3
    assert [one.server_state is not None for one in models] == [keeps_state] * 3
    # The next round names what the round before left.
    assert [one.server_state for one in plans] == [None, *(one.server_state for one in models[:2])]
    assert {problem.code for problem in (await verify_run(bus, unique_run)).problems} == {"decision"}
    async with contextlib.aclosing(bus.expired_objects(0)) as expired:
        gone = {ref.sha256 async for ref in expired}
    assert not gone & {one.server_state.sha256 for one in models if one.server_state}
    objects = {ref.sha256: await bus.objects.get(ref) async for ref in needed(bus, stream, "replay")}
    assert replay_run(stream, objects, roles=["dispatcher", "aggregator"]).differences == []
    if keeps_state:
        del objects[models[0].server_state.sha256]
        differences = replay_run(stream, objects, roles=["aggregator"]).differences
        assert [one.what for one in differences] == ["the model of round 2"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"strategy": "fedprox"}, "no strategy 'fedprox'"),
        ({"strategy_settings": {"speed": 3}}, "speed"),
        ({"training": small().training.model_copy(update={"encoding": "int4"})}, "int4"),
        ({"kind": "poetry"}, "poetry"),
    ],
)
async def test_a_run_that_somebody_starts_with_an_unknown_strategy_or_setting_fails_with_the_reason(
    nats: EmbeddedServer, bus: Bus, unique_run: str, changes: dict[str, object], reason: str
) -> None:
    with pytest.raises(FedbusError, match=reason):
        await start_run(bus, unique_run, small().model_copy(update=changes), RunSources())
    started = await start_run(bus, f"{unique_run}-sound", small(), RunSources())
    odd = started.model_copy(update={"run": unique_run, "config": started.config.model_copy(update=changes)})
    async with running(nats, *BODIES):
        await bus.publish(odd)
        await bus.publish(RoundStarted(run=unique_run, round=1))
        finished = await until_event(bus, unique_run, RunFinished)
    assert isinstance(finished.event.data, RunFinished)
    assert finished.event.data.status == "failed"
    assert reason in finished.event.data.reason
    stream = await events(bus, unique_run)
    objects = {ref.sha256: await bus.objects.get(ref) async for ref in needed(bus, stream, "replay")}
    assert replay_run(stream, objects, roles=["dispatcher"]).differences == []


async def test_a_round_whose_strategy_the_aggregator_cannot_load_fails_with_the_reason(
    nats: EmbeddedServer, bus: Bus, unique_run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDBUS_STRATEGIES", "only_at_the_dispatcher")
    started = await start_run(bus, f"{unique_run}-sound", small(), RunSources())
    config = started.config.model_copy(update={"strategy": "only_at_the_dispatcher:Class"})
    async with running(nats, "aggregator"):
        await bus.publish(started.model_copy(update={"run": unique_run, "config": config}))
        plan = planned(1, 1).model_copy(update={"run": unique_run, "base_model": started.base_model})
        await bus.publish(plan)
        failed = await until_event(bus, unique_run, RoundFailed)
    assert isinstance(failed.event.data, RoundFailed)
    assert "only_at_the_dispatcher:Class cannot be imported" in failed.event.data.reason


async def test_a_closed_round_whose_strategy_cannot_be_loaded_any_more_says_so_and_others_go_on(
    nats: EmbeddedServer, bus: Bus, unique_run: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("FEDBUS_STRATEGIES", "only_at_the_dispatcher")
    sound = f"{unique_run}-sound"
    started = await start_run(bus, sound, small(), RunSources())
    config = started.config.model_copy(update={"strategy": "only_at_the_dispatcher:Class"})
    await bus.publish(started.model_copy(update={"run": unique_run, "config": config}))
    await bus.publish(planned(1, 1).model_copy(update={"run": unique_run, "base_model": started.base_model}))
    closed = await bus.publish(
        RoundClosed(run=unique_run, round=1, reason="all", accepted=0, missing=0, rejected=1, through=1)
    )
    with caplog.at_level("WARNING", logger=aggregator.__name__):
        async with running(nats, "labeller", "aggregator", "evaluator"):
            await wait_for(lambda: "waits for its strategy" in caplog.text)
    (said,) = {one.getMessage() for one in caplog.records if "waits for its strategy" in one.getMessage()}
    assert "only_at_the_dispatcher:Class cannot be imported" in said
    assert "[strategy_unknown]" in said
    assert of(await events(bus, unique_run), RoundFailed) == []
    assert closed.created
    # The dispatcher refuses such a run from its start, so that it is over here.
    async with running(nats, *BODIES), asyncio.timeout(DEADLINE_S):
        await bus.publish(RoundStarted(run=sound, round=1))
        await answer_all(bus, sound)
    assert of(await events(bus, sound), RunFinished)[0].status == "completed"


@pytest.mark.parametrize(("fault", "code"), [("step", "strategy_failed"), ("nan", "strategy_result")])
async def test_a_strategy_that_goes_wrong_ends_its_run_with_the_reason_and_all_others_go_on(
    nats: EmbeddedServer, bus: Bus, unique_run: str, monkeypatch: pytest.MonkeyPatch, fault: str, code: str
) -> None:
    monkeypatch.setenv("FEDBUS_STRATEGIES", faulty_strategy.NAME)
    sound = f"{unique_run}-sound"
    settings = small(rounds=2, strategy=faulty_strategy.NAME).model_copy(update={"strategy_settings": {"fault": fault}})
    async with running(nats, *BODIES):
        for run, config in ((unique_run, settings), (sound, small(rounds=2))):
            await start_run(bus, run, config, RunSources())
            await bus.publish(RoundStarted(run=run, round=1))
        async with asyncio.timeout(DEADLINE_S):
            await asyncio.gather(answer_all(bus, unique_run), answer_all(bus, sound))
    stream = await events(bus, unique_run)
    failed, finished = of(stream, RoundFailed, RunFinished)
    assert failed.code == code
    assert (finished.status, finished.reason) == ("failed", f"round 1: {failed.reason}")
    assert of(await events(bus, sound), RunFinished)[0].status == "completed"
    view = RunView.of(stream)
    assert (view.rounds[1].phase, view.rounds[1].ended) == ("failed", failed.reason)
    problems = (await verify_run(bus, unique_run)).problems
    assert {problem.code for problem in problems} <= {"decision"}
    objects = {ref.sha256: await bus.objects.get(ref) async for ref in needed(bus, stream, "replay")}
    assert replay_run(stream, objects, roles=["dispatcher", "aggregator"]).differences == []
    # A class that was mended since, or does something else each time, is told and ends nothing.
    monkeypatch.setattr(faulty_strategy.Faulty, "step", lambda self, gathered, step: step.model.fill(0))
    (told,) = replay_run(stream, objects, roles=["aggregator"]).differences
    assert told.what == "the failure of round 1"
    monkeypatch.delenv("FEDBUS_STRATEGIES")
    with pytest.raises(StrategyNotAllowedError):
        replay_run(stream, objects, roles=["aggregator"])


async def test_an_aggregator_that_ends_between_a_strategys_failure_and_its_event_says_it_when_it_is_back(
    nats: EmbeddedServer, bus: Bus, unique_run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDBUS_STRATEGIES", faulty_strategy.NAME)
    config = small(strategy=faulty_strategy.NAME).model_copy(update={"strategy_settings": {"fault": "step"}})

    class Killed(Exception):
        pass

    def killed(point: str) -> None:
        if point == "aggregator.failing":
            raise Killed

    async def killed_aggregator() -> None:
        async with running(nats, "aggregator"):
            await asyncio.Event().wait()

    others = [name for name in BODIES if name != "aggregator"]
    async with running(nats, *others), asyncio.timeout(DEADLINE_S):
        await start_run(bus, unique_run, config, RunSources())
        await bus.publish(RoundStarted(run=unique_run, round=1))
        answering = asyncio.create_task(answer_all(bus, unique_run))
        with monkeypatch.context() as armed:
            armed.setattr(aggregator, "crash_point", killed)
            with pytest.raises(ExceptionGroup) as ended:
                await killed_aggregator()
        assert ended.group_contains(Killed)
        assert of(await events(bus, unique_run), RoundFailed) == []
        async with running(nats, "aggregator"):
            await answering
    stream = await events(bus, unique_run)
    assert [one.code for one in of(stream, RoundFailed)] == ["strategy_failed"]
    assert of(stream, RunFinished)[0].status == "failed"


async def test_a_run_whose_last_model_cannot_be_evaluated_ends_and_says_so(
    nats: EmbeddedServer, bus: Bus, unique_run: str
) -> None:
    started = await start_run(bus, f"{unique_run}-sound", small(), RunSources())
    dataset = RunDataset.model_validate_json(await bus.objects.get(started.dataset))
    # Images without labels: the evaluator gives up at once.
    unlabelled = dataset.model_copy(update={"held_out": dataset.users[0].shard})
    ref = await bus.objects.put(unlabelled.model_dump_json().encode())
    async with running(nats, *BODIES):
        await bus.publish(started.model_copy(update={"run": unique_run, "dataset": ref}))
        await bus.publish(RoundStarted(run=unique_run, round=1))
        async with asyncio.timeout(DEADLINE_S):
            await answer_all(bus, unique_run)
    stream = await events(bus, unique_run)
    given_up, (finished,) = of(stream, EvaluationFailed), of(stream, RunFinished)
    assert [one.round for one in given_up if one.round == 1] == [1]
    (reason,) = {one.reason for one in given_up if one.round == 1}
    assert finished.status == "completed"
    assert finished.reason == f"the model of round 1 has no evaluation: {reason}"
    assert finished.final_model == of(stream, ModelPublished)[0].model


async def test_agents_that_start_after_everything_was_said_finish_the_run_all_the_same(
    nats: EmbeddedServer, bus: Bus, unique_run: str
) -> None:
    await start_run(bus, unique_run, small(), RunSources())
    await bus.publish(RoundStarted(run=unique_run, round=1))
    async with running(nats, "labeller"):
        await until_event(bus, unique_run, ImagesLabelled)
    async with running(nats, *BODIES), asyncio.timeout(DEADLINE_S):
        await answer_all(bus, unique_run)
    assert of(await events(bus, unique_run), RunFinished)[0].status == "completed"


async def test_two_of_each_deciding_agent_say_everything_once(nats: EmbeddedServer, bus: Bus, unique_run: str) -> None:
    async with running(nats, *BODIES), running(nats, *BODIES):
        await start_run(bus, unique_run, small(), RunSources())
        await bus.publish(RoundStarted(run=unique_run, round=1))
        async with asyncio.timeout(DEADLINE_S):
            await answer_all(bus, unique_run)
    stream = await events(bus, unique_run)
    subjects = [one.event.subject for one in stream]
    assert len(subjects) == len(set(subjects))
    assert of(stream, RunFinished)[0].status == "completed"


async def test_the_quorum_closes_the_round_and_a_late_update_is_marked_stale(
    nats: EmbeddedServer, bus: Bus, unique_run: str
) -> None:
    async with running(nats, *BODIES):
        started = await start_run(bus, unique_run, small(rounds=2, fraction=0.75), RunSources())
        await bus.publish(RoundStarted(run=unique_run, round=1))
        tasks = [await until_event(bus, unique_run, TaskAssigned)]
        while len(tasks) < 4:
            tasks.append(await until_event(bus, unique_run, TaskAssigned, after=tasks[-1].sequence))
        *prompt, late = [one.event.data for one in tasks if isinstance(one.event.data, TaskAssigned)]
        for task in prompt:
            await Trainer(bus).submit(task, started.base_model)
        await until_event(bus, unique_run, ModelPublished)
        await Trainer(bus).submit(late, started.base_model, 100.0)
        refused = await until_event(bus, unique_run, UpdateRejected)
        stream = await events(bus, unique_run)
    assert isinstance(refused.event.data, UpdateRejected)
    assert (refused.event.data.user, refused.event.data.code) == (late.user, "stale")
    (closed,) = of(stream, RoundClosed)
    assert (closed.reason, closed.accepted, closed.missing) == ("quorum", 3, 1)
    assert of(stream, ModelPublished)[0].updates == 3


@pytest.mark.parametrize(
    ("data", "encoding", "code"),
    [
        (b"\0" * 12, "float32", "size"),
        (np.full(8842, np.nan, "<f4").tobytes(), "float32", "nonfinite"),
        *((np.full(8842, value, "<f4").tobytes(), "float32", "magnitude") for value in (1e30, 1.07e8, 2.0**31)),
        (b"\0" * 12, "no-such-encoding", "shape"),
    ],
)
async def test_an_update_with_bad_bytes_is_refused_and_the_round_goes_on(
    nats: EmbeddedServer, bus: Bus, unique_run: str, data: bytes, encoding: str, code: str
) -> None:
    async with running(nats, *BODIES):
        started = await start_run(bus, unique_run, small(fraction=0.75), RunSources())
        await bus.publish(RoundStarted(run=unique_run, round=1))
        first = await until_event(bus, unique_run, TaskAssigned)
        assert isinstance(first.event.data, TaskAssigned)
        await Trainer(bus).submit(first.event.data, started.base_model, data=data, encoding=encoding)
        refused = await until_event(bus, unique_run, UpdateRejected)
        async with asyncio.timeout(DEADLINE_S):
            await answer_all(bus, unique_run, skip=first.event.data.user)
    assert isinstance(refused.event.data, UpdateRejected)
    assert refused.event.data.code == code
    (closed,) = of(await events(bus, unique_run), RoundClosed)
    assert (closed.reason, closed.accepted, closed.rejected) == ("all", 3, 1)


async def test_a_round_without_quorum_fails_at_its_deadline_and_so_does_the_run(
    nats: EmbeddedServer, bus: Bus, unique_run: str
) -> None:
    async with running(nats, *BODIES):
        await start_run(bus, unique_run, small(deadline_s=0.2, extensions=1), RunSources())
        await bus.publish(RoundStarted(run=unique_run, round=1))
        finished = await until_event(bus, unique_run, RunFinished)
    stream = await events(bus, unique_run)
    assert "0 of 4" in of(stream, RoundFailed)[0].reason
    assert isinstance(finished.event.data, RunFinished)
    assert finished.event.data.status == "failed"


async def test_a_round_from_a_model_that_does_not_exist_fails_with_the_reason(
    nats: EmbeddedServer, bus: Bus, unique_run: str
) -> None:
    missing = Ref(name="sha256-" + "0" * 64, size=4, sha256="0" * 64)
    async with running(nats, *BODIES):
        await start_run(bus, unique_run, small(), RunSources())
        await bus.publish(RoundStarted(run=unique_run, round=1, base_model=missing))
        finished = await until_event(bus, unique_run, RunFinished)
    assert isinstance(finished.event.data, RunFinished)
    assert "not in the object store" in finished.event.data.reason


async def test_a_run_of_the_same_name_with_another_config_is_refused(bus: Bus, unique_run: str) -> None:
    await start_run(bus, unique_run, small(), RunSources())
    with pytest.raises(FedbusError) as refused:
        await start_run(bus, unique_run, small(rounds=3), RunSources())
    assert refused.value.code == "conflicting_event"


async def test_starting_the_same_run_twice_changes_nothing(bus: Bus, unique_run: str) -> None:
    first = await start_run(bus, unique_run, small(), RunSources())
    assert await start_run(bus, unique_run, small(), RunSources()) == first
    assert len(of(await events(bus, unique_run), RunStarted)) == 1
