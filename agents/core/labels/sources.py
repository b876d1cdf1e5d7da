"""Labels that nobody has to be asked for: the truth with seeded errors, and answers that were recorded in a file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from agents.core.labels.errors import LabelsFileError, TruthMissingError
from agents.core.labels.labels import Answer, UserLabels, settle
from agents.core.labels.matching import LabelMatcher

_TRUTH = TypeAdapter(dict[str, list[int]])
_ANSWERS = TypeAdapter(dict[str, list[str | None] | str | None])


class SimulatedLabeller:
    """Knows the true labels and makes errors: each label is wrong with probability ``error_rate``.

    Raises:
        TruthMissingError: ``truth`` is no JSON object of users to class indices.
    """

    def __init__(self, truth: bytes, *, classes: int, error_rate: float, seed: int) -> None:
        try:
            self._truth = _TRUTH.validate_json(truth)
        except ValidationError:
            raise TruthMissingError("the dataset's truth object is not a map from user to class indices") from None
        self._classes, self._error_rate, self._seed = classes, error_rate, seed

    def label(self, user: str) -> UserLabels:
        """The user's true labels, some of them replaced.

        Raises:
            TruthMissingError: nothing sensible is known of this user.
        """
        truth = self._truth.get(user)
        if truth is None or any(not 0 <= label < self._classes for label in truth):
            raise TruthMissingError(f"the truth of user {user} is missing or not within the classes")
        return UserLabels(
            simulated_labels(truth, self._classes, error_rate=self._error_rate, seed=self._seed, user=user)
        )


class RecordedAnswers:
    """Answers from a JSON file: user to list of answers, or image digest (see ``image_digest``) to answer.

    The output of ``fedbus data labels match`` is understood too, when its ids are digests; an image that it set aside
    or does not name has no label.

    Raises:
        LabelsFileError: the content of ``file``, so named in the message, is something else.
    """

    def __init__(self, content: bytes, file: str) -> None:
        try:
            said = json.loads(content)
        except (ValueError, RecursionError):
            raise LabelsFileError(f"{file} is not JSON") from None
        if isinstance(said, dict) and isinstance(said.get("matched"), dict):
            said = said["matched"]
        try:
            entries = _ANSWERS.validate_python(said)
        except ValidationError:
            raise LabelsFileError(
                f"{file} is not a map", hint="it maps users to lists of class names, or image digests to class names"
            ) from None
        self._by_user = {key: value for key, value in entries.items() if isinstance(value, list)}
        self._by_image = {key: value for key, value in entries.items() if not isinstance(value, list)}

    def label(self, user: str, images: Sequence[NDArray[np.uint8]] | NDArray[np.uint8], to: LabelMatcher) -> UserLabels:
        """The answers about the user's images, uint8 [height, width, channels] each, matched to the classes.

        Raises:
            LabelsFileError: the file has another number of answers for this user.
        """
        answers = self._by_user.get(user)
        if answers is None:
            answers = [self._by_image.get(image_digest(image)) for image in images]
        if len(answers) != len(images):
            raise LabelsFileError(f"user {user} has {len(images)} images and {len(answers)} recorded labels")
        return settle([Answer(text) for text in answers], to)


def image_digest(image: NDArray[np.uint8]) -> str:
    """SHA-256 of the raw pixels [height, width, channels] in C order: what names an image to caches and label files."""
    return hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest()


def simulated_labels(
    truth: Sequence[int], classes: int, *, error_rate: float, seed: int, user: str
) -> tuple[int | None, ...]:
    """The true class indices with errors: each is replaced with probability ``error_rate`` by another class, uniformly.

    Whether and how image ``i`` is mislabelled depends on seed, user and ``i`` alone.
    """
    true = np.asarray(truth, np.int64)
    key = hashlib.sha256(f"{seed}/labels/{user}".encode()).digest()
    draws = np.random.Generator(np.random.PCG64(int.from_bytes(key[:16], "big"))).random((len(true), 2))
    wrong = (true + 1 + (draws[:, 1] * (classes - 1)).astype(np.int64)) % classes
    return tuple(np.where(draws[:, 0] < error_rate, wrong, true).tolist())
