"""Makes a run's report of its events: pure, so that a recording gives the same report as the live run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from agents.audit.report.model import (
    ClassReport,
    ClientCounts,
    Confusion,
    FinalModel,
    LabelsReport,
    Report,
    RoundReport,
    TimeReport,
)
from agents.core.learning.scores import EvaluationDetails
from agents.core.rounds.state import RoundState
from agents.words.events import (
    ImagesLabelled,
    ModelEvaluated,
    RoundPayload,
    RoundStarted,
    RunFinished,
    RunStarted,
    UpdateMetrics,
    UpdateSubmitted,
)
from bus.errors import FedbusError
from bus.words.envelope import Stored

Details = Mapping[str, Any] | Callable[[str], Any]
"""The JSON objects that ``model.evaluated`` refers to, by SHA-256."""


class NoSuchRunError(FedbusError):
    """There is no run of this name."""

    code = "run_unknown"


@dataclass
class _Round:
    """What the events say of one round."""

    state: RoundState
    started: datetime | None = None
    published: datetime | None = None
    evaluated_at: datetime | None = None
    evaluated: ModelEvaluated | None = None

    def metrics(self) -> list[UpdateMetrics]:
        return [one.update.metrics for one in self.state.accepted().values()]


@dataclass
class _Facts:
    """What the events say of the run."""

    started: Stored
    rounds: dict[int, _Round] = field(default_factory=dict)
    labelled: dict[str, Stored] = field(default_factory=dict)
    clients: dict[str, str] = field(default_factory=dict)
    finished: RunFinished | None = None
    end: datetime = datetime.min

    @property
    def opening(self) -> RunStarted:
        data = self.started.event.data
        assert isinstance(data, RunStarted)
        return data


def build_report(events: Sequence[Stored], details: Details, *, clients: Mapping[str, int] | None = None) -> Report:
    """The report of the run whose events these are, in stream order.

    Args:
        events: of one run.
        details: the evaluation details by SHA-256, as a mapping or a function; at least the newest.
        clients: how many of each kind (``browser``, ``native``) were started; without it, those that gave an update
            are counted.

    Raises:
        NoSuchRunError: there is no ``run.started`` among the events.
    """
    facts = _facts(events)
    opening, config = facts.opening, facts.opening.config
    numbers = sorted(number for number in facts.rounds if number > 0)
    base = next((one.evaluated.base for one in facts.rounds.values() if one.evaluated is not None), None)
    rounds = tuple(_round_report(facts.rounds[number]) for number in numbers)
    counts = ClientCounts.model_validate(clients) if clients is not None else _client_counts(facts.clients)
    wall_s = (facts.end - facts.started.time).total_seconds()
    newest = _newest_evaluation(facts)
    known = _details_of(newest, details)
    return Report(
        run=opening.run,
        status=facts.finished.status if facts.finished else "running",
        reason=facts.finished.reason if facts.finished else "",
        seed=config.seed,
        users=opening.users,
        images_per_user=config.images_per_user,
        augmentations=config.training.augmentations,
        held_out_images=newest.images if newest else None,
        clients=counts,
        base=base,
        rounds=rounds,
        final=_final(facts, newest),
        wall_seconds=wall_s,
        labels=_labels(facts),
        per_class=_per_class(known) if known else (),
        confusion=Confusion(base=known.base.confusion, final=known.updated.confusion) if known else None,
        time=_time(facts, numbers, counts.browser + counts.native, wall_s),
    )


def _facts(events: Iterable[Stored]) -> _Facts:
    facts: _Facts | None = None
    for stored in events:
        data = stored.event.data
        if facts is None:
            if isinstance(data, RunStarted):
                facts = _Facts(stored, end=stored.time)
            continue
        facts.end = stored.time
        if isinstance(data, ImagesLabelled):
            facts.labelled.setdefault(data.user, stored)
        elif isinstance(data, RunFinished):
            facts.finished = data
            break
        elif isinstance(data, RoundPayload):
            _fold(facts, data, stored)
    if facts is None:
        raise NoSuchRunError("the events of this run do not begin with run.started", hint="check the run's name")
    return facts


def _fold(facts: _Facts, data: RoundPayload, stored: Stored) -> None:
    if data.round not in facts.rounds:
        state = RoundState(data.run, data.round, facts.opening.config.quorum)
        facts.rounds[data.round] = _Round(state)
    one = facts.rounds[data.round]
    one.state.fold(stored)
    if isinstance(data, RoundStarted):
        one.started = one.started or stored.time
    elif isinstance(data, ModelEvaluated):
        one.evaluated, one.evaluated_at = data, stored.time
    elif isinstance(data, UpdateSubmitted):
        facts.clients[data.client] = data.platform
    if one.state.published is data:
        one.published = stored.time


def _round_report(one: _Round) -> RoundReport:
    state, metrics = one.state, one.metrics()
    closed, published, failed = state.closed, state.published, state.failed
    return RoundReport(
        round=state.round,
        accuracy=one.evaluated.updated.accuracy if one.evaluated else None,
        loss=one.evaluated.updated.loss if one.evaluated else None,
        mismatched_images=sum(each.mismatched_images for each in metrics),
        trained_images=sum(each.trained_images for each in metrics),
        updates_accepted=len(metrics),
        updates_missing=closed.missing if closed else (state.plan.users if state.plan else 0) - len(metrics),
        updates_rejected=len(state.refused),
        seconds=_seconds(one.started, one.published),
        evaluation_seconds=_seconds(one.published, one.evaluated_at),
        model_sha256=published.model.sha256 if published else None,
        failed=failed.reason if failed else None,
    )


def _seconds(start: datetime | None, end: datetime | None) -> float | None:
    return (end - start).total_seconds() if start and end else None


def _newest_evaluation(facts: _Facts) -> ModelEvaluated | None:
    evaluated = [one.evaluated for _, one in sorted(facts.rounds.items()) if one.evaluated is not None]
    return evaluated[-1] if evaluated else None


def _details_of(newest: ModelEvaluated | None, details: Details) -> EvaluationDetails | None:
    if newest is None:
        return None
    digest = newest.details.sha256
    found = details(digest) if callable(details) else details.get(digest)
    return EvaluationDetails.model_validate(found) if found is not None else None


def _final(facts: _Facts, newest: ModelEvaluated | None) -> FinalModel:
    models = [one.state.published.model.sha256 for _, one in sorted(facts.rounds.items()) if one.state.published]
    digest = models[-1] if models else facts.opening.base_model.sha256
    if newest is None or newest.model != digest:
        return FinalModel(model_sha256=digest)
    return FinalModel(accuracy=newest.updated.accuracy, loss=newest.updated.loss, model_sha256=digest)


def _client_counts(clients: Mapping[str, str]) -> ClientCounts:
    native = sum(platform == "native" for platform in clients.values())
    return ClientCounts(browser=len(clients) - native, native=native)


def _labels(facts: _Facts) -> LabelsReport | None:
    said = [stored.event.data for stored in facts.labelled.values()]
    users = [data for data in said if isinstance(data, ImagesLabelled)]
    if not users:
        return None
    return LabelsReport(
        provider=users[0].provider,
        model=users[0].model,
        images=sum(len(one.labels) for one in users),
        dropped=dict(sorted(Counter(image.reason for one in users for image in one.dropped).items())),
        prompt_tokens=sum(one.prompt_tokens for one in users),
        completion_tokens=sum(one.completion_tokens for one in users),
    )


def _per_class(details: EvaluationDetails) -> tuple[ClassReport, ...]:
    return tuple(
        ClassReport(name=name, images=sum(row), base=base, final=final)
        for name, row, base, final in zip(
            details.classes, details.base.confusion, details.base.per_class, details.updated.per_class, strict=True
        )
    )


def _time(facts: _Facts, numbers: Sequence[int], clients: int, wall_s: float) -> TimeReport:
    rounds = [facts.rounds[number] for number in numbers]
    metrics = [each for one in rounds for each in one.metrics()]
    predict_s, train_s = sum(each.predict_s for each in metrics), sum(each.train_s for each in metrics)
    started = [one.started for one in rounds if one.started]
    published = [one.published for one in rounds if one.published]
    labelled = max((stored.time for stored in facts.labelled.values()), default=None)
    available_s = wall_s * clients
    return TimeReport(
        labelling=_seconds(facts.started.time, labelled),
        rounds=(max(published) - min(started)).total_seconds() if started and published else 0.0,
        predict=predict_s,
        train=train_s,
        evaluation=sum(_seconds(one.published, one.evaluated_at) or 0.0 for one in rounds),
        overhead_share=max(0.0, 1 - (predict_s + train_s) / available_s) if available_s > 0 else None,
    )
