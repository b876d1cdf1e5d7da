"""Makes a run's report of its view: pure, so that a recording gives the same report as the live run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

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
from agents.core.views.round import RoundView, TaskView, seconds_between
from agents.core.views.run import RunView
from agents.words.engine_kinds import KINDS
from bus.errors import FedbusError


class NoSuchRunError(FedbusError):
    """There is no run of this name."""

    code = "run_unknown"


def build_report(
    view: RunView, details: EvaluationDetails | None, *, clients: Mapping[str, int] | None = None
) -> Report:
    """The report of the run, as far as ``view`` has seen it.

    Args:
        view: of all events of the run.
        details: the object that ``view.newest_evaluation`` refers to, if it is known.
        clients: how many of each kind (``browser``, ``native``) were started; without it, those that gave an update
            are counted.

    Raises:
        NoSuchRunError: the run has not started.
    """
    if view.started is None or view.started_at is None or view.last_at is None:
        raise NoSuchRunError("the events of this run do not begin with run.started", hint="check the run's name")
    config, finished = view.started.config, view.finished
    rounds = [one for _, one in sorted(view.rounds.items())]
    counts = ClientCounts.model_validate(clients) if clients is not None else _client_counts(view)
    wall_s = (view.last_at - view.started_at).total_seconds()
    newest = view.newest_evaluation
    return Report(
        run=view.run,
        status=finished.status if finished else "running",
        reason=finished.reason if finished else "",
        seed=config.seed,
        users=view.users,
        images_per_user=config.images_per_user,
        augmentations=config.training.augmentations,
        held_out_images=newest.images if newest else None,
        clients=counts,
        base=view.base,
        rounds=tuple(_round_report(one) for one in rounds),
        final=_final(view, rounds),
        wall_seconds=wall_s,
        labels=_labels(view),
        per_class=_per_class(details) if details else (),
        confusion=Confusion(base=details.base.confusion, final=details.updated.confusion) if details else None,
        time=_time(view, rounds, counts.total, wall_s),
    )


def _counting(one: RoundView) -> list[TaskView]:
    """The tasks whose updates make the round's model, by user."""
    return [task for _, task in sorted(one.tasks.items()) if task.counts]


def _round_report(one: RoundView) -> RoundReport:
    accepted = len(_counting(one))
    closed, published, failed = one.rules.closed, one.rules.published, one.rules.failed
    score = one.evaluation.updated if one.evaluation else None
    return RoundReport(
        round=one.number,
        accuracy=score.accuracy if score else None,
        loss=score.loss if score else None,
        mismatched_images=one.mismatched_images,
        trained_images=one.trained_images,
        updates_accepted=accepted,
        updates_missing=closed.missing if closed else one.users - accepted,
        updates_rejected=one.refused,
        seconds=one.seconds,
        evaluation_seconds=one.evaluation_seconds,
        model_sha256=published.model.sha256 if published else None,
        failed=failed.reason if failed else None,
        code=failed.code if failed else None,
    )


def _final(view: RunView, rounds: Sequence[RoundView]) -> FinalModel:
    assert view.started is not None
    models = [one.rules.published.model.sha256 for one in rounds if one.rules.published]
    digest, newest = models[-1] if models else view.started.base_model.sha256, view.newest_evaluation
    if newest is None or newest.model != digest:
        return FinalModel(model_sha256=digest)
    return FinalModel(accuracy=newest.updated.accuracy, loss=newest.updated.loss, model_sha256=digest)


def _client_counts(view: RunView) -> ClientCounts:
    kinds = Counter(client.kind for client in view.clients.values() if client.updates)
    return ClientCounts(**{kind: kinds[kind] for kind in KINDS})


def _labels(view: RunView) -> LabelsReport | None:
    said = view.labels
    if said is None:
        return None
    return LabelsReport(
        provider=said.provider,
        model=said.model,
        images=said.images,
        dropped=dict(sorted(said.dropped.items())),
        prompt_tokens=said.prompt_tokens,
        completion_tokens=said.completion_tokens,
    )


def _per_class(details: EvaluationDetails) -> tuple[ClassReport, ...]:
    return tuple(
        ClassReport(name=name, images=sum(row), base=base, final=final)
        for name, row, base, final in zip(
            details.classes, details.base.confusion, details.base.per_class, details.updated.per_class, strict=True
        )
    )


def _time(view: RunView, rounds: Sequence[RoundView], clients: int, wall_s: float) -> TimeReport:
    tasks = [task for one in rounds for task in _counting(one)]
    predict_s, train_s = sum(task.predict_s for task in tasks), sum(task.train_s for task in tasks)
    started = min((one.started_at for one in rounds if one.started_at), default=None)
    published = max((one.published_at for one in rounds if one.published_at), default=None)
    available_s = wall_s * clients
    return TimeReport(
        labelling=seconds_between(view.started_at, view.labels.last_at if view.labels else None),
        rounds=seconds_between(started, published) or 0.0,
        predict=predict_s,
        train=train_s,
        evaluation=sum(one.evaluation_seconds or 0.0 for one in rounds),
        overhead_share=max(0.0, 1 - (predict_s + train_s) / available_s) if available_s > 0 else None,
    )
