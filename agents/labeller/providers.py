"""The one interface of label providers, and the two that need no network: ``truth`` and ``recorded``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from agents.core.labels.errors import LabelsFileError
from agents.core.labels.labels import UserLabels
from agents.core.labels.matching import LabelMatcher
from agents.core.labels.sources import RecordedAnswers, SimulatedLabeller
from agents.labeller.settings import LabellerSettings
from agents.words.run_config import UserShard
from bus.words.values import Ref

LoadImages = Callable[[Ref], Awaitable[NDArray[np.uint8]]]
"""Reads a shard: uint8 [n, height, width, channels]."""


def check_provider(name: str, settings: LabellerSettings) -> None:
    """Sees to it that the provider of this name has what it needs of this machine, before anything is started.

    Raises:
        LabellingError: a key or a file is missing or useless.
    """
    if name == "openai":
        settings.api_key()
    elif name == "recorded":
        _read_answers(settings.labels_file)


class Provider(Protocol):
    """Where labels come from.

    Attributes:
        prompt_version: what was asked, if anything was.
        users_at_once: users that the labeller asks for together.
    """

    prompt_version: str | None
    users_at_once: int

    async def check_cost(self, users: Sequence[UserShard]) -> None:
        """Refuses, before anything is spent, when labelling these users may cost more than it is allowed to.

        Raises:
            CostLimitError: it may.
        """

    async def label(self, user: UserShard) -> UserLabels:
        """Labels of the user's images, in shard order.

        Raises:
            LabellingError: a person has to act first.
        """


class FreeProvider:
    """A provider that costs nothing and asks nobody."""

    prompt_version: str | None = None

    async def check_cost(self, users: Sequence[UserShard]) -> None:
        """There is no cost."""


class TruthProvider(FreeProvider):
    """The true labels with seeded errors: a labeller for offline use."""

    users_at_once = 10_000

    def __init__(self, labeller: SimulatedLabeller) -> None:
        self._labeller = labeller

    async def label(self, user: UserShard) -> UserLabels:
        """The user's true labels, some of them replaced."""
        return self._labeller.label(user.user)


class RecordedProvider(FreeProvider):
    """Labels from a file of recorded answers."""

    users_at_once = 64

    def __init__(self, path: Path | None, load: LoadImages, matcher: LabelMatcher) -> None:
        self._answers = _read_answers(path)
        self._load, self._matcher = load, matcher

    async def label(self, user: UserShard) -> UserLabels:
        """The user's recorded answers, matched to the classes."""
        return self._answers.label(user.user, await self._load(user.shard), self._matcher)


def _read_answers(path: Path | None) -> RecordedAnswers:
    if path is None:
        raise LabelsFileError("no file of recorded labels is given", hint="set FEDBUS_LABELS_FILE to its path")
    try:
        return RecordedAnswers(path.read_bytes(), str(path))
    except OSError as error:
        raise LabelsFileError(f"{path} cannot be read: {error.strerror}", hint="check FEDBUS_LABELS_FILE") from None
