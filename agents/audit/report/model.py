"""What a report says of a run, as it stands in report.json."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from agents.core.learning.confusion import ConfusionCounts
from agents.words.events import Score
from bus.words.values import Frozen


class ClientCounts(Frozen):
    """Clients that trained, by kind; ``other`` are those whose engine nobody knows."""

    browser: int = 0
    native: int = 0
    other: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.browser + self.native + self.other


class RoundReport(Frozen):
    """One round; numbers of images sum over the accepted updates, times are in seconds.

    ``accuracy`` and ``loss`` are none until the evaluator has spoken.
    """

    round: int
    accuracy: float | None = None
    loss: float | None = None
    mismatched_images: int = 0
    trained_images: int = 0
    updates_accepted: int = 0
    updates_missing: int = 0
    updates_rejected: int = 0
    seconds: float | None = Field(default=None, description="from round.started to model.published")
    evaluation_seconds: float | None = Field(default=None, description="from model.published to model.evaluated")
    model_sha256: str | None = None
    failed: str | None = Field(default=None, description="why the round ended without a model")
    code: str | None = Field(
        default=None,
        description="what is at fault, where that has a name (docs/errors.md)",
        exclude_if=lambda code: code is None,
    )


class FinalModel(Frozen):
    """The newest model of the run; the base model if no round has ended."""

    accuracy: float | None = None
    loss: float | None = None
    model_sha256: str


class LabelsReport(Frozen):
    """What the labeller did."""

    provider: str
    model: str | None
    images: int
    dropped: dict[str, int] = Field(description="images without a label, by reason")
    prompt_tokens: int
    completion_tokens: int


class ClassReport(Frozen):
    """One class on the held-out images: accuracies as fractions of 1, none without images of the class."""

    name: str
    images: int
    base: float | None
    final: float | None


class Confusion(Frozen):
    """Numbers of held-out images, ``[true][predicted]``, under the base and the newest model."""

    base: ConfusionCounts
    final: ConfusionCounts


class TimeReport(Frozen):
    """Where the time went, in seconds.

    ``predict`` and ``train`` are what the clients measured, summed over all accepted updates. ``overhead_share`` is
    the part of the wall time in which a client did neither, averaged over the clients.
    """

    labelling: float | None = Field(description="from run.started to the last user's labels")
    rounds: float = Field(description="from the first round.started to the last model.published")
    predict: float
    train: float
    evaluation: float = Field(description="from model.published to model.evaluated, over all rounds")
    overhead_share: float | None


class Report(Frozen):
    """A run, finished or not: accuracies are fractions of 1, losses mean cross-entropy in nats, times in seconds."""

    run: str
    status: Literal["running", "completed", "failed", "cancelled"]
    reason: str = ""
    seed: int
    users: int
    images_per_user: int
    augmentations: int
    held_out_images: int | None = None
    clients: ClientCounts
    base: Score | None
    rounds: tuple[RoundReport, ...]
    final: FinalModel
    wall_seconds: float
    labels: LabelsReport | None = None
    per_class: tuple[ClassReport, ...] = ()
    confusion: Confusion | None = None
    time: TimeReport
