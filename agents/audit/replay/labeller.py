"""Replays the labeller: its rules label every user's images again, and must come to the same event."""

from __future__ import annotations

from agents.audit.replay.outcome import Objects, Replay
from agents.core.labels.errors import LabellingError
from agents.core.labels.labels import UserLabels, answers_told, images_labelled, settle
from agents.core.labels.matching import LabelMatcher
from agents.core.labels.sources import SimulatedLabeller
from agents.words.events import ImagesLabelled, RunStarted
from agents.words.run_config import RunDataset
from bus.words.envelope import Stored


class LabellerReplay:
    """Drives the labels' rules with the run's config and data.

    With the provider ``truth`` the labels themselves are computed again. What ``openai`` and ``recorded`` were told
    came from outside, so theirs are settled again from what their event says that they were told.
    """

    def __init__(self, started: RunStarted, dataset: RunDataset, objects: Objects) -> None:
        self._started, self._dataset = started, dataset
        self._users = {user.user: user for user in dataset.users}
        self._matcher = LabelMatcher(dataset.classes)
        self._truth = objects.get(dataset.truth.sha256) if dataset.truth is not None else None
        self._labeller: SimulatedLabeller | None = None

    def take(self, stored: Stored, outcome: Replay) -> None:
        """Compares one event with what its user's images must have been labelled as, when it is the labeller's."""
        data = stored.event.data
        if not isinstance(data, ImagesLabelled):
            return
        outcome.checked["labeller"] += 1
        user, what = self._users.get(data.user), f"what it says of {data.user}"
        if user is None:
            outcome.differ(stored.sequence, "labeller", what, data, None)
            return
        try:
            labels = self._labels(data)
        except LabellingError as error:
            outcome.differ(stored.sequence, "labeller", what, data, error.message)
            return
        expected = images_labelled(self._started, user, labels, prompt_version=data.prompt_version)
        for field in ImagesLabelled.model_fields:
            recorded, replayed = getattr(data, field), getattr(expected, field)
            outcome.compare(stored.sequence, "labeller", f"{what} ({field})", recorded, replayed)

    def _labels(self, data: ImagesLabelled) -> UserLabels:
        if self._started.config.labelling.provider != "truth" or self._truth is None:
            return settle(answers_told(data, self._dataset.classes), self._matcher)
        if self._labeller is None:
            self._labeller = SimulatedLabeller(
                self._truth,
                classes=len(self._dataset.classes),
                error_rate=self._started.config.labelling.error_rate,
                seed=self._started.config.seed,
            )
        return self._labeller.label(data.user)
