"""Labels that nobody has to be asked for: the truth with seeded errors, and answers that were recorded in a file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from agents.core.labels.errors import LabelsFileError, TruthMissingError
from agents.core.labels.label_file import LabelFile
from agents.core.labels.labels import Answer, UserLabels, settle
from agents.core.labels.matching import LabelMatcher
from bus.words.values import MAX_IMAGES_PER_USER

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
        if len(truth) > MAX_IMAGES_PER_USER:
            raise TruthMissingError(f"user {user} has {len(truth)} true labels, more than {MAX_IMAGES_PER_USER}")
        return UserLabels(
            simulated_labels(truth, self._classes, error_rate=self._error_rate, seed=self._seed, user=user)
        )


class RecordedAnswers:
    """Answers from a JSON file, which says something of every image of every user.

    It is a ``LabelFile``, or a map from user to list of answers, or from image digest (see ``image_digest``) to answer.
    What a ``LabelFile`` set aside, and an answer that is null, is no label.

    Raises:
        LabelsFileError: the content of ``file``, so named in the message, is something else.
    """

    def __init__(self, content: bytes, file: str) -> None:
        self._file = file
        self._by_user: dict[str, list[Answer]] = {}
        try:
            said = json.loads(content)
        except (ValueError, RecursionError):
            raise LabelsFileError(f"{file} is not JSON") from None
        try:
            if isinstance(said, dict) and isinstance(said.get("matched"), dict):
                self._by_image = LabelFile.model_validate(said).by_image()
                return
            entries = _ANSWERS.validate_python(said)
        except ValidationError:
            raise LabelsFileError(
                f"{file} is no file of recorded labels",
                hint="it is what fedbus data labels run leaves, or a map from users to lists of class names, or from "
                "image digests to class names",
            ) from None
        self._by_user = {
            key: [Answer(one) for one in value] for key, value in entries.items() if isinstance(value, list)
        }
        self._by_image = {key: Answer(value) for key, value in entries.items() if not isinstance(value, list)}

    def label(self, user: str, images: Sequence[NDArray[np.uint8]] | NDArray[np.uint8], to: LabelMatcher) -> UserLabels:
        """The answers about the user's images, uint8 [height, width, channels] each, matched to the classes.

        Raises:
            LabelsFileError: the file lacks one of the images, or has another number of answers for this user.
        """
        answers = self._by_user.get(user)
        if answers is None:
            found = [self._by_image.get(image_digest(image)) for image in images]
            answers = [answer for answer in found if answer is not None]
            if len(answers) != len(images):
                raise LabelsFileError(
                    f"{self._file} does not have {len(images) - len(answers)} of the {len(images)} images of {user}, "
                    f"such as image {found.index(None)}",
                    hint="label the same prepared images: fedbus data labels run DATASET -o FILE",
                )
        if len(answers) != len(images):
            raise LabelsFileError(f"user {user} has {len(images)} images and {len(answers)} recorded labels")
        return settle(answers, to)


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
