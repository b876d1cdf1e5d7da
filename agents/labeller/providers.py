"""The one interface of label providers, and the two that need no network: ``truth`` and ``recorded``."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from agents.core.labels.labels import Answer, UserLabels, settle, simulated_labels
from agents.core.labels.matching import LabelMatcher
from agents.labeller.errors import LabelsFileError, TruthMissingError
from agents.labeller.label_file import read_label_file
from agents.words.run_config import UserShard
from bus.words.values import Ref

T = TypeVar("T")
LoadImages = Callable[[Ref], Awaitable[NDArray[np.uint8]]]
"""Reads a shard: uint8 [n, height, width, channels]."""


class Provider(Protocol):
    """Where labels come from.

    Attributes:
        name: provider as the event names it.
        model: model that answers, if there is one.
        prompt_version: what was asked, if anything was.
        users_at_once: users that the labeller asks for together.
    """

    name: str
    model: str | None
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


def image_digest(image: NDArray[np.uint8]) -> str:
    """SHA-256 of the raw pixels [height, width, channels] in C order: what names an image to caches and label files."""
    return hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest()


async def together(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """The results of all, done at the same time; the first failure, if there is one, ends the others."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in work]
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]


class FreeProvider:
    """A provider that costs nothing and asks nobody."""

    model: str | None = None
    prompt_version: str | None = None

    async def check_cost(self, users: Sequence[UserShard]) -> None:
        """There is no cost."""


class TruthProvider(FreeProvider):
    """The true labels with seeded errors: a labeller for offline use."""

    name = "truth"
    users_at_once = 10_000

    def __init__(self, truth: bytes, *, classes: int, error_rate: float, seed: int) -> None:
        try:
            self._truth = TypeAdapter(dict[str, list[int]]).validate_json(truth)
        except ValidationError:
            raise TruthMissingError("the dataset's truth object is not a map from user to class indices") from None
        self._classes, self._error_rate, self._seed = classes, error_rate, seed

    async def label(self, user: UserShard) -> UserLabels:
        """The user's true labels, some of them replaced."""
        truth = self._truth.get(user.user)
        if truth is None or any(not 0 <= label < self._classes for label in truth):
            raise TruthMissingError(f"the truth of user {user.user} is missing or not within the classes")
        return UserLabels(
            simulated_labels(truth, self._classes, error_rate=self._error_rate, seed=self._seed, user=user.user)
        )


class RecordedProvider(FreeProvider):
    """Labels from a JSON file, which says something of every image of every user.

    It is a file that ``fedbus data labels run`` wrote, or a map from user to list of answers, or from image digest (see
    ``image_digest``) to answer. What a file of the first kind set aside, and an answer that is null, is no label.
    """

    name = "recorded"
    users_at_once = 64

    def __init__(self, path: Path | None, classes: Sequence[str], load: LoadImages, *, threshold: float) -> None:
        self._path = path
        self._by_user, self._by_image = _read_labels(path)
        self._matcher = LabelMatcher(classes, threshold=threshold)
        self._load = load

    async def label(self, user: UserShard) -> UserLabels:
        """The user's recorded answers, matched to the classes.

        Raises:
            LabelsFileError: the file lacks the user, or one of the images.
        """
        images = await self._load(user.shard)
        answers = self._by_user.get(user.user)
        if answers is None:
            found = [self._by_image.get(image_digest(image)) for image in images]
            answers = [answer for answer in found if answer is not None]
            if len(answers) != len(images):
                raise LabelsFileError(
                    f"{self._path} does not have {len(images) - len(answers)} of the {len(images)} images of "
                    f"{user.user}, such as image {found.index(None)}",
                    hint="label the same prepared images: fedbus data labels run DATASET -o FILE",
                )
        if len(answers) != len(images):
            raise LabelsFileError(f"user {user.user} has {len(images)} images and {len(answers)} recorded labels")
        return settle(answers, self._matcher)


def _read_labels(path: Path | None) -> tuple[dict[str, list[Answer]], dict[str, Answer]]:
    """The answers by user and by image digest that the file holds."""
    if path is None:
        raise LabelsFileError("no file of recorded labels is given", hint="set FEDBUS_LABELS_FILE to its path")
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise LabelsFileError(f"{path} cannot be read: {error.strerror}", hint="check FEDBUS_LABELS_FILE") from None
    except (ValueError, RecursionError):
        raise LabelsFileError(f"{path} is not JSON") from None
    if isinstance(content, dict) and isinstance(content.get("matched"), dict):
        return {}, read_label_file(path).by_image()
    try:
        entries = TypeAdapter(dict[str, list[str | None] | str | None]).validate_python(content)
    except ValidationError:
        raise LabelsFileError(
            f"{path} is not a map", hint="it maps users to lists of class names, or image digests to class names"
        ) from None
    by_user = {key: [Answer(one) for one in value] for key, value in entries.items() if isinstance(value, list)}
    return by_user, {key: Answer(value) for key, value in entries.items() if not isinstance(value, list)}
