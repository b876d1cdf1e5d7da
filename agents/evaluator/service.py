"""The evaluator: compares every round's model with the base model on the run's held-out images."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from agents.core.learning.evaluation import details_of, evaluation_of, scores_in
from agents.core.learning.kinds import TaskKindUnknownError, open_kind
from agents.core.learning.scores import EvaluationDetails, ModelScores
from agents.engines import EngineUnavailableError, choose, open_engine
from agents.evaluator.scoring import HeldOutScorer
from agents.runtime.tasks import until
from agents.words.events import EvaluationFailed, ModelEvaluated, ModelPublished, RunStarted
from agents.words.run_config import RunDataset
from artifacts.manifest import ArtifactManifest
from bus.client import Bus
from bus.errors import ConflictingEventError, FedbusError, ObjectCorruptError, ObjectMissingError
from bus.process.crash_points import crash_point
from bus.process.folders import temporary_folder
from bus.words.envelope import Stored
from bus.words.problems import what_is_wrong
from bus.words.subjects import event_subject, events_of_type
from bus.words.values import Ref
from bus.work.worker import work

MODELS_KEPT = 2
ACK_WAIT_S = 10.0
"""How long the models of an evaluator that died wait for another one."""
ATTEMPTS = 5
"""Tries of a model, each with whatever evaluator has it."""
_PAYLOAD: Any = ModelEvaluated
"""Without its type: a payload that only says where it lies is enough to look for the whole one."""
log = logging.getLogger(__name__)


class EvaluationError(FedbusError):
    """A model cannot be evaluated: the run's dataset, held-out images or artifacts do not fit it."""

    code = "evaluation_impossible"


class Evaluator:
    """The shell around the metrics; ``cache`` is a folder for the artifacts' files."""

    def __init__(self, bus: Bus, cache: Path) -> None:
        self._bus = bus
        self._cache = cache
        self._scorers: OrderedDict[tuple[str, str], HeldOutScorer] = OrderedDict()

    async def handle(self, stored: Stored) -> None:
        """Evaluates the model that a ``run.started`` or ``model.published`` names, and says so."""
        crash_point("evaluator.received")
        match stored.event.data:
            case RunStarted() as started:
                number, model = 0, started.base_model
            case ModelPublished() as published:
                found = await self._bus.find(events_of_type("run.started", published.run))
                if found is None or not isinstance(found.event.data, RunStarted):
                    raise EvaluationError(f"run {published.run} published a model and was never started")
                started, number, model = found.event.data, published.round, published.model
            case _:
                return
        evaluated = await self._evaluate(started, number, model)
        crash_point("evaluator.details_put")
        try:
            await self._bus.publish(evaluated, cause=stored.event)
            crash_point("evaluator.published")
        except ConflictingEventError:
            # Another evaluator was faster; its last digits may differ on another machine.
            log.info("already evaluated", extra={"run": started.run, "round": number})
        else:
            log.info(
                "accuracy %.4f, base %.4f",
                evaluated.updated.accuracy,
                evaluated.base.accuracy,
                extra={"run": started.run, "round": number},
            )

    async def give_up(self, stored: Stored, reason: str) -> None:
        """Says that the model will not be evaluated, so that its run need not wait for it."""
        match stored.event.data:
            case RunStarted() as started:
                failed = EvaluationFailed(
                    run=started.run, round=0, model=started.base_model.sha256, reason=reason[:500]
                )
            case ModelPublished() as published:
                failed = EvaluationFailed(
                    run=published.run, round=published.round, model=published.model.sha256, reason=reason[:500]
                )
            case _:
                return
        with contextlib.suppress(ConflictingEventError):
            # It was given up before, for another reason.
            await self._bus.publish(failed, cause=stored.event)

    async def _evaluate(self, started: RunStarted, number: int, model: Ref) -> ModelEvaluated:
        scorer = await self._scorer(started)
        base = await self._said_of_base(started.run)
        if base is None:
            base = await scorer.scores(await self._parameters(started.base_model))
        updated = base
        if model.sha256 != started.base_model.sha256:
            updated = await scorer.scores(await self._parameters(model))
        crash_point("evaluator.evaluated")
        details = details_of(scorer.classes, base, updated)
        ref = await self._bus.objects.put(details.model_dump_json().encode(), media_type="application/json")
        return evaluation_of(started.run, number, model.sha256, base, updated, ref)

    async def _said_of_base(self, run: str) -> ModelScores | None:
        """The base model's scores as the evaluation of round 0 tells them: they stay what they were said to be."""
        found = await self._bus.find(event_subject(_PAYLOAD.model_construct(run=run, round=0)))
        if found is None or not isinstance(said := found.event.data, ModelEvaluated):
            return None
        try:
            details = EvaluationDetails.model_validate_json(await self._bus.objects.get(said.details))
            return scores_in(said, details)[0]
        except (ObjectMissingError, ObjectCorruptError, ValueError):
            log.warning("the details of an evaluation cannot be read", extra={"run": run, "round": said.round})
            return None

    async def _parameters(self, model: Ref) -> NDArray[np.float32]:
        content = await self._bus.objects.get(model)
        if len(content) % 4:
            raise EvaluationError(f"model {model.sha256} has {len(content)} bytes, not whole float32 values")
        return np.frombuffer(content, "<f4").astype(np.float32)

    async def _scorer(self, started: RunStarted) -> HeldOutScorer:
        key = (started.artifacts.sha256, started.dataset.sha256)
        if key not in self._scorers:
            self._scorers[key] = await self._open(started)
            while len(self._scorers) > MODELS_KEPT:
                self._scorers.popitem(last=False)
        self._scorers.move_to_end(key)
        return self._scorers[key]

    async def _open(self, started: RunStarted) -> HeldOutScorer:
        try:
            manifest = ArtifactManifest.model_validate_json(await self._bus.objects.get(started.artifacts))
            dataset = RunDataset.model_validate_json(await self._bus.objects.get(started.dataset))
        except ValidationError as error:
            raise EvaluationError(f"the run's manifest or dataset is malformed: {what_is_wrong(error)}") from None
        try:
            kind = open_kind(started.config.kind, manifest.model)
            choice = choose(offered=manifest.offered)
        except (TaskKindUnknownError, EngineUnavailableError) as error:
            raise EvaluationError(error.message, hint=error.hint) from None
        examples, labels = kind.decode(await self._bus.objects.get(dataset.held_out))
        if labels is None or not len(labels) or not 0 <= labels.min() <= labels.max() < len(manifest.model.classes):
            raise EvaluationError("the held-out images have no labels, or labels that are none of the model's classes")
        if manifest.model.classes != dataset.classes:
            raise EvaluationError("the model and the run's dataset have different classes")
        log.info("engine %s: %s", choice.name, choice.reason, extra={"run": started.run})
        paths = {}
        for role, file in choice.files(manifest).items():
            paths[role] = self._cache / file.sha256
            if not paths[role].exists():
                await self._bus.objects.fetch_to(file.ref, paths[role])
        engine = await asyncio.to_thread(open_engine, manifest, paths, choice=choice)
        return HeldOutScorer(engine, kind, examples, labels, classes=manifest.model.classes)


async def serve(bus: Bus, stop: asyncio.Event) -> None:
    """The body of the evaluator agent."""
    with temporary_folder("evaluator") as cache:
        evaluator = Evaluator(bus, cache)
        filters = [events_of_type("run.started"), events_of_type("model.published")]
        # It gives up by itself, and says so: what the broker alone gave up would leave its run without an end.
        async with bus.pull("evaluator", filters, ack_wait_s=ACK_WAIT_S, max_ack_pending=8, max_deliver=-1) as consumer:
            working = work(
                consumer,
                evaluator.handle,
                concurrency=1,
                permanent=(EvaluationError,),
                attempts=ATTEMPTS,
                on_given_up=evaluator.give_up,
            )
            await until(stop, working)
