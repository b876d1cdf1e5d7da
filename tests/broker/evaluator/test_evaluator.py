"""The evaluator agent on a real broker, with the shipped model and held-out images."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence

import numpy as np

from agents.cli.run_setup import RunSources, start_run
from agents.core.learning.scores import EvaluationDetails
from agents.evaluator.service import serve
from agents.runtime.tasks import background
from agents.words.events import EvaluationFailed, ModelEvaluated, ModelPublished, RunStarted
from bus.client import Bus
from bus.words.envelope import Stored
from bus.words.subjects import events_of_type
from bus.words.values import Ref
from tests.builders import ANY_REF, config
from tests.conftest import wait_for


async def evaluations(bus: Bus, run: str, count: int) -> Sequence[Stored] | None:
    async with bus.follow(events_of_type("model.evaluated", run), live=False) as items:
        found = [item async for item in items if isinstance(item, Stored)]
    return found if len(found) == count else None


def published(run: str, number: int, model: Ref, parent: Ref) -> ModelPublished:
    return ModelPublished(
        run=run,
        round=number,
        model=model,
        parent=parent,
        inputs_digest=ANY_REF.sha256,
        strategy="fedavg",
        updates=1,
        examples=1,
    )


async def scores(bus: Bus, run: str, models: Sequence[Ref], started: RunStarted) -> list[ModelEvaluated]:
    for number, model in enumerate(models, start=1):
        await bus.publish(published(run, number, model, started.base_model))
    found = await wait_for(lambda: evaluations(bus, run, 1 + len(models)))
    data = [stored.event.data for stored in found]
    return sorted((one for one in data if isinstance(one, ModelEvaluated)), key=lambda one: one.round)


async def test_base_and_updated_model_are_scored_on_the_held_out_images(bus: Bus, unique_run: str):
    async with background(serve(bus, asyncio.Event())):
        started = await start_run(bus, unique_run, config(users=2), RunSources())
        base = np.frombuffer(await bus.objects.get(started.base_model), "<f4")
        broken = await bus.objects.put((-3 * base).astype("<f4").tobytes())
        first, second, third = await scores(bus, unique_run, [broken, started.base_model], started)
    assert first.round == 0
    assert first.model == started.base_model.sha256
    assert first.base == first.updated == second.base == third.updated
    assert 0.6 < first.base.accuracy < 0.75
    assert second.updated.accuracy < first.base.accuracy - 0.2
    assert second.updated.loss > second.base.loss
    details = EvaluationDetails.model_validate(json.loads(await bus.objects.get(second.details)))
    confusion = np.asarray(details.updated.confusion)
    assert confusion.sum() == second.images
    assert np.trace(confusion) / second.images == second.updated.accuracy
    assert details.classes[7] == "sneaker"


async def test_a_model_of_the_wrong_size_is_given_up_and_the_next_one_is_evaluated(bus: Bus, unique_run: str):
    async with background(serve(bus, asyncio.Event())):
        started = await start_run(bus, unique_run, config(users=2), RunSources())
        await bus.publish(published(unique_run, 1, await bus.objects.put(b"odd"), started.base_model))
        await bus.publish(published(unique_run, 2, started.base_model, started.base_model))
        found = await wait_for(lambda: evaluations(bus, unique_run, 2))
    given_up = await bus.find(events_of_type("evaluation.failed", unique_run).replace(">", "1"))
    assert given_up is not None
    assert isinstance(given_up.event.data, EvaluationFailed)
    assert given_up.event.data.model != started.base_model.sha256
    assert "3 bytes" in given_up.event.data.reason
    assert {stored.event.data.round for stored in found} == {0, 2}  # type: ignore[attr-defined]
