"""What a labeller says about a user's images: a class, or a reason for none, for each; and the event that says it."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, replace

from agents.core.labels.matching import LabelMatcher, Matched
from agents.words.events import DroppedImage, ImagesLabelled, RunStarted
from agents.words.run_config import UserShard

_MAX_ANSWER = 500
MAX_DATA_BYTES = 62 * 1024
"""Of labels as JSON: what an event may hold less what is around its data (``bus.broker.topology.MAX_EVENT_BYTES``)."""


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
        image = {"index": index, "reason": reason, "answer": text[:_MAX_ANSWER]}
        dropped.append(DroppedImage.model_validate(image))
    return UserLabels(
        tuple(labels),
        tuple(dropped),
        prompt_tokens=sum(answer.prompt_tokens for answer in answers),
        completion_tokens=sum(answer.completion_tokens for answer in answers),
    )


def fitting(said: ImagesLabelled) -> ImagesLabelled:
    """``said`` as an event can hold it: with answers of dropped images that are long together cut to one length.

    Nothing else of it grows so large: a thousand labels and reasons fit without their answers. What fits already stays
    as it is, so that a replay of the event comes to the event.
    """

    def cut(length: int) -> ImagesLabelled:
        shorter = tuple(image.model_copy(update={"answer": image.answer[:length]}) for image in said.dropped)
        return said.model_copy(update={"dropped": shorter})

    def fits(one: ImagesLabelled) -> bool:
        return len(one.model_dump_json().encode()) <= MAX_DATA_BYTES

    if fits(said):
        return said
    length = bisect.bisect(range(1, _MAX_ANSWER + 1), 0, key=lambda length: 0 if fits(cut(length)) else 1)
    return cut(length)


def answers_told(said: ImagesLabelled, classes: Sequence[str]) -> list[Answer]:
    """What a labeller must have been told to say this, as far as the event knows: the inverse of ``settle``.

    The text of a label is its class's own name. Why an image was dropped is taken as said, like a failure: how close a
    spelling had to be is the labeller's own setting.
    """
    dropped = {image.index: image for image in said.dropped}
    answers = []
    for index, label in enumerate(said.labels):
        if label is not None:
            answers.append(Answer(classes[label] if 0 <= label < len(classes) else None))
        elif (image := dropped.get(index)) is not None:
            answers.append(Answer(image.answer, image.reason))
        else:
            answers.append(Answer(None))
    if answers:
        # Their sum is all that the event knows.
        spent = replace(answers[0], prompt_tokens=said.prompt_tokens, completion_tokens=said.completion_tokens)
        answers[0] = spent
    return answers


def images_labelled(
    started: RunStarted, user: UserShard, labels: UserLabels, *, prompt_version: str | None = None
) -> ImagesLabelled:
    """The event that says a user's labels in this run."""
    spec = started.config.labelling
    return ImagesLabelled(
        run=started.run,
        user=user.user,
        shard=user.shard,
        labels=labels.labels,
        dropped=labels.dropped,
        provider=spec.provider,
        model=spec.model if spec.provider == "openai" else None,
        prompt_version=prompt_version,
        prompt_tokens=labels.prompt_tokens,
        completion_tokens=labels.completion_tokens,
    )
