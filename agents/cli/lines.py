"""What a run says in one line, event by event, for whoever reads along without a live picture."""

from __future__ import annotations

from agents.core.views.run import RunView
from agents.words.events import (
    NO_FAULT,
    EvaluationFailed,
    ImagesLabelled,
    ModelEvaluated,
    RoundClosed,
    RoundExtended,
    RoundFailed,
    RoundStarted,
    RunFinished,
    RunStarted,
    UpdateRejected,
    UpdateSubmitted,
)
from bus.words.envelope import Stored


def line_about(stored: Stored, view: RunView) -> str | None:
    """One line about an event that ``view`` has just taken in, when it is worth a line."""
    match stored.event.data:
        case RunStarted() as data:
            return f"run {data.run}: {data.users} users, {data.config.rounds} rounds, seed {data.config.seed}"
        case ImagesLabelled():
            return _labelled(view)
        case RoundStarted() as data:
            return f"round {data.round} started"
        case UpdateSubmitted() as data:
            one = view.rounds[data.round]
            if one.users and one.submitted % max(1, one.users // 4) == 0:
                return f"round {data.round}: {one.submitted} of {one.users} updates"
        case UpdateRejected() as data if data.code not in NO_FAULT:
            return f"round {data.round}: update of {data.user} rejected ({data.code}): {data.reason}"
        case RoundExtended() as data:
            return f"round {data.round}: no quorum yet, extended until {data.deadline:%H:%M:%S}"
        case RoundClosed() as data:
            return f"round {data.round} closed ({data.reason}): {data.accepted} accepted, {data.missing} missing"
        case RoundFailed() as data:
            return f"round {data.round} failed: {data.reason}{f' [{data.code}]' if data.code else ''}"
        case ModelEvaluated() as data:
            return _evaluated(data)
        case EvaluationFailed() as data:
            return f"round {data.round}: the model could not be evaluated: {data.reason}"
        case RunFinished() as data:
            return f"run {data.status}{': ' + data.reason if data.reason else ''}"
        case _:
            pass
    return None


def _labelled(view: RunView) -> str | None:
    labels = view.labels
    if labels is None or len(view.labelled) != view.users:
        return None
    dropped = labels.dropped.total()
    return f"labelled {labels.labelled_images} images of {view.users} users, {dropped} dropped"


def _evaluated(data: ModelEvaluated) -> str:
    if data.round == 0:
        return f"base model: accuracy {data.base.accuracy:.1%} on {data.images} held-out images"
    gain = 100 * (data.updated.accuracy - data.base.accuracy)
    return f"round {data.round}: accuracy {data.updated.accuracy:.1%} ({gain:+.1f} points over the base model)"
