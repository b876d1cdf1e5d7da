"""A run's view as JSON: what the page must make of the same events, and what a dashboard can be sent.

Times are UTC in ISO 8601, accuracies fractions of 1, losses mean cross-entropy in nats, durations seconds. What is not
known yet is null, 0 or empty. The tasks of a round are in the order of their assignment; there may be 100,000.
"""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import islice
from typing import Any, get_args

from agents.core.views.round import RoundView, TaskState, TaskView
from agents.core.views.run import ClientView, LabelsView, RunView
from agents.words.events import Score

Json = dict[str, Any]


def run_json(view: RunView, *, tasks: bool = True) -> Json:
    """The whole view; without ``tasks`` it does not grow with the users, and ``tasks_json`` gives some of them."""
    started, finished = view.started, view.finished
    return {
        "run": view.run,
        "sequence": view.sequence,
        "status": view.status,
        "reason": finished.reason if finished else "",
        "seed": started.config.seed if started else None,
        "users": view.users,
        "rounds_planned": view.rounds_planned,
        "base_model": started.base_model.sha256 if started else None,
        "started_at": _time(view.started_at),
        "last_at": _time(view.last_at),
        "finished_at": _time(view.last_at) if finished else None,
        "base": _score(view.base),
        "labels": _labels(view.labels),
        "waiting": view.users - len(view.labelled),
        "labelled": [{"user": user, "at": _time(at)} for user, at in view.labelled.items()] if tasks else [],
        "clients": [_client(one) for one in view.clients.values()],
        "latest": [{"round": number, "user": user} for number, user in view.latest],
        "rounds": [round_json(one, tasks=tasks) for _, one in sorted(view.rounds.items())],
    }


def round_json(view: RoundView, *, tasks: bool = True) -> Json:
    """One round, with all of its tasks or none."""
    plan, closed, published = view.rules.plan, view.rules.closed, view.rules.published
    return {
        "round": view.number,
        "phase": view.phase,
        "started_at": _time(view.started_at),
        "planned_at": _time(view.planned_at),
        "extended_at": [_time(at) for at in view.extended_at],
        "ended_at": _time(view.ended_at),
        "published_at": _time(view.published_at),
        "evaluated_at": _time(view.evaluated_at),
        "deadline": _time(view.rules.deadline),
        "users": view.users,
        "quorum": view.quorum,
        "base_model": plan.base_model.sha256 if plan else None,
        "learning_rate": plan.learning_rate if plan else None,
        "counts": {state: view.counts[state] for state in get_args(TaskState)},
        "submitted": view.submitted,
        "refused": view.refused,
        "rejections": view.rejections,
        "mismatched_images": view.mismatched_images,
        "trained_images": view.trained_images,
        "ended": view.ended,
        "missing": closed.missing if closed else None,
        "model": published.model.sha256 if published else None,
        "strategy": published.strategy if published else None,
        "score": _score(view.evaluation.updated if view.evaluation else None),
        "tasks": tasks_json(view) if tasks else [],
    }


def tasks_json(view: RoundView, *, start: int = 0, count: int | None = None) -> list[Json]:
    """``count`` tasks of the round from the ``start``-th on, or all from there."""
    stop = None if count is None else start + count
    return [_task(one) for one in islice(view.tasks.values(), start, stop)]


def _task(one: TaskView) -> Json:
    return {
        "user": one.user,
        "state": one.state,
        "client": one.client,
        "assigned_at": _time(one.assigned_at),
        "submitted_at": _time(one.submitted_at),
        "refused_at": _time(one.refused_at),
        "code": one.code,
        "reason": one.reason,
        "images": one.images,
        "mismatched_images": one.mismatched_images,
        "trained_images": one.trained_images,
        "predict_s": one.predict_s,
        "train_s": one.train_s,
    }


def _client(one: ClientView) -> Json:
    return {
        "client": one.client,
        "engine": one.engine,
        "kind": one.kind,
        "updates": one.updates,
        "last_at": _time(one.last_at),
        "progress": one.progress.model_dump(mode="json", exclude={"run", "client"}) if one.progress else None,
    }


def _labels(one: LabelsView | None) -> Json | None:
    if one is None:
        return None
    return {
        "provider": one.provider,
        "model": one.model,
        "last_at": _time(one.last_at),
        "images": one.images,
        "labelled_images": one.labelled_images,
        "dropped": dict(one.dropped),
        "prompt_tokens": one.prompt_tokens,
        "completion_tokens": one.completion_tokens,
    }


def _score(score: Score | None) -> Json | None:
    return score.model_dump() if score else None


def _time(at: datetime | None) -> str | None:
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z") if at else None
