"""What became of the answer about each image: matched to a class, or set aside until a person settles it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

from agents.core.labels.errors import LabelsFileError
from agents.core.labels.labels import Answer
from agents.core.labels.matching import Ambiguous, LabelMatcher, Matched
from data.class_names import ClassNames, as_given


class SetAside(BaseModel):
    """An answer that no rule could match: what was said, and the classes that come near, best first."""

    model_config = ConfigDict(extra="forbid")

    answer: str | None
    reason: Literal["unknown", "not_a_class", "ambiguous", "refused", "failed"]
    candidates: list[str]


class LabelFile(BaseModel):
    """Image ids by what became of their answer.

    ``images`` gives the digest of an id's pixels when they are known, by which the provider ``recorded`` finds them.
    """

    model_config = ConfigDict(extra="forbid")

    matched: dict[str, str]
    ambiguous: dict[str, SetAside]
    rejected: dict[str, SetAside]
    classes: ClassNames
    images: dict[str, str] = {}

    @property
    def set_aside(self) -> dict[str, SetAside]:
        """What a person can still settle, ambiguous answers first."""
        return {**self.ambiguous, **self.rejected}

    def by_image(self) -> dict[str, Answer]:
        """What is said of each image, by the digest of its pixels, or by its id where the file does not know that.

        Raises:
            LabelsFileError: equal images have different labels.
        """
        found: dict[str, Answer] = {}
        for id_, name in self.matched.items():
            digest = self.images.get(id_, id_)
            if found.setdefault(digest, Answer(name)).text != name:
                raise LabelsFileError(
                    f"image {id_!r} is {name!r}, and an equal one is {found[digest].text!r}",
                    hint="settle it with: fedbus data labels review FILE --set ID=CLASS",
                )
        for id_, aside in self.set_aside.items():
            found.setdefault(self.images.get(id_, id_), Answer(aside.answer, aside.reason))
        return found

    def settle(self, id_: str, class_name: str) -> None:
        """Gives an image, and all that are equal to it, its class by hand, also one that was matched before.

        Raises:
            LabelsFileError: no such image, or the name means no single class.
        """
        if id_ not in self.matched and id_ not in self.set_aside:
            raise LabelsFileError(f"the file has no image {id_!r}")
        verdict = LabelMatcher(self.classes).match(class_name)
        if not isinstance(verdict, Matched) or verdict.how == "fuzzy":
            shared = zip(self.classes, as_given(self.classes), strict=True)
            namesakes = [one for one, given in shared if given == class_name]
            hint = f"say which: {' or '.join(namesakes)}" if namesakes else ""
            raise LabelsFileError(f"{class_name!r} is not one of the {len(self.classes)} classes", hint=hint)
        digest = self.images.get(id_)
        for equal in {id_, *(other for other, one in self.images.items() if one == digest)}:
            self.ambiguous.pop(equal, None)
            self.rejected.pop(equal, None)
            self.matched[equal] = self.classes[verdict.index]


def match_answers(answers: Mapping[str, str | None], classes: Sequence[str], *, threshold: float) -> LabelFile:
    """The answers, by image id, matched to the classes."""
    matcher = LabelMatcher(classes, threshold=threshold)
    file = LabelFile(matched={}, ambiguous={}, rejected={}, classes=tuple(classes))
    for id_, answer in answers.items():
        verdict = matcher.match(answer)
        if isinstance(verdict, Matched):
            file.matched[id_] = classes[verdict.index]
        else:
            candidates = [classes[index] for index in verdict.candidates]
            aside = SetAside(answer=answer, reason=verdict.reason, candidates=candidates)
            (file.ambiguous if isinstance(verdict, Ambiguous) else file.rejected)[id_] = aside
    return file
