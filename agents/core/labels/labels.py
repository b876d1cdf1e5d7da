"""What a labeller says about a user's images: a class or a reason for each, and the simulated labeller's errors."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from agents.core.labels.matching import LabelMatcher, Matched
from agents.words.events import DroppedImage

_MAX_ANSWER = 500


@dataclass(frozen=True)
class Answer:
    """What a labeller said about one image; ``failure`` says why that is no label, whatever the text."""

    text: str | None
    failure: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True)
class UserLabels:
    """One user's labels: a class index for each image, or none where ``dropped`` says why."""

    labels: tuple[int | None, ...]
    dropped: tuple[DroppedImage, ...] = ()
    prompt_tokens: int = 0
    completion_tokens: int = 0


def settle(answers: Sequence[Answer], matcher: LabelMatcher) -> UserLabels:
    """The labels that ``answers``, one for each image in order, amount to; what matches no single class is dropped."""
    labels: list[int | None] = []
    dropped: list[DroppedImage] = []
    for index, answer in enumerate(answers):
        # JSON can name half a character, which no event can say.
        text = (answer.text or "").encode(errors="replace").decode()
        verdict = None if answer.failure else matcher.match(text)
        if isinstance(verdict, Matched):
            labels.append(verdict.index)
            continue
        labels.append(None)
        reason = answer.failure if verdict is None else verdict.reason
        # Half a character is JSON, and no text that an event could say.
        text = (answer.text or "").encode(errors="replace").decode()
        image = {"index": index, "reason": reason, "answer": text[:_MAX_ANSWER]}
        dropped.append(DroppedImage.model_validate(image))
    return UserLabels(
        tuple(labels),
        tuple(dropped),
        prompt_tokens=sum(answer.prompt_tokens for answer in answers),
        completion_tokens=sum(answer.completion_tokens for answer in answers),
    )


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
