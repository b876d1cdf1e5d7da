"""Replays the labeller: a simulated labeller's labels are computed again; what an API or a file said is checked."""

from __future__ import annotations

from pydantic import TypeAdapter, ValidationError

from agents.audit.replay.outcome import Objects, Replay
from agents.core.labels.labels import simulated_labels
from agents.words.events import ImagesLabelled, RunStarted
from agents.words.run_config import RunDataset
from bus.words.envelope import Stored

_Truth = TypeAdapter(dict[str, list[int]])


class LabellerReplay:
    """Drives the labels' rules with the run's config and data.

    With the provider ``truth`` the labels themselves are computed again. What ``openai`` and ``recorded`` were told
    came from outside, so of theirs it is checked what must hold of any: labels of the run's classes, for each image a
    label or a reason for none, and the provider and model that the config asks for.
    """

    def __init__(self, started: RunStarted, dataset: RunDataset, objects: Objects) -> None:
        self._started = started
        self._shards = {user.user: user.shard for user in dataset.users}
        self._classes = len(dataset.classes)
        self._truth: dict[str, list[int]] | None = None
        if dataset.truth is not None and dataset.truth.sha256 in objects:
            try:
                self._truth = _Truth.validate_json(objects[dataset.truth.sha256])
            except ValidationError:
                self._truth = {}

    def take(self, stored: Stored, outcome: Replay) -> None:
        """Compares one event with what its user's images must have been labelled as, when it is the labeller's."""
        data = stored.event.data
        if not isinstance(data, ImagesLabelled):
            return
        outcome.checked["labeller"] += 1
        spec = self._started.config.labelling

        def same(what: str, recorded: object, replayed: object) -> None:
            outcome.compare(stored.sequence, "labeller", f"{what} of {data.user}", recorded, replayed)

        same("the provider", data.provider, spec.provider)
        same("the model", data.model, spec.model if spec.provider == "openai" else None)
        same("the images", data.shard, self._shards.get(data.user))
        same("the images without a label", tuple(one.index for one in data.dropped), _without_label(data))
        wrong = [label for label in data.labels if label is not None and not 0 <= label < self._classes]
        same("labels that are no class", wrong, [])
        if spec.provider == "truth" and self._truth is not None:
            same("the labels", data.labels, self._simulated(data.user))

    def _simulated(self, user: str) -> tuple[int | None, ...] | None:
        truth = (self._truth or {}).get(user)
        if truth is None:
            return None
        config = self._started.config
        return simulated_labels(
            truth, self._classes, error_rate=config.labelling.error_rate, seed=config.seed, user=user
        )


def _without_label(data: ImagesLabelled) -> tuple[int, ...]:
    return tuple(index for index, label in enumerate(data.labels) if label is None)
