"""The file of matched and set-aside answers that ``fedbus data labels`` writes and a person settles."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from agents.core.labels.errors import LabelsFileError
from agents.core.labels.matching import Ambiguous, LabelMatcher, Matched
from bus.process.files import write_atomically


class SetAside(BaseModel):
    """An answer that no rule could match: what was said, and the classes that come near, best first."""

    model_config = ConfigDict(extra="forbid")

    answer: str | None
    reason: str
    candidates: list[str]


class LabelFile(BaseModel):
    """Image ids by what became of their answer.

    ``images`` gives the digest of an id's pixels when they are known, which lets the provider ``recorded`` use the
    file.
    """

    model_config = ConfigDict(extra="forbid")

    matched: dict[str, str]
    ambiguous: dict[str, SetAside]
    rejected: dict[str, SetAside]
    classes: list[str]
    images: dict[str, str] = {}

    @property
    def set_aside(self) -> dict[str, SetAside]:
        """What a person can still settle, ambiguous answers first."""
        return {**self.ambiguous, **self.rejected}

    def settle(self, id_: str, class_name: str) -> None:
        """Gives an image its class by hand, also one that was matched before.

        Raises:
            LabelsFileError: no such image, or the name means no single class.
        """
        if id_ not in self.matched and id_ not in self.set_aside:
            raise LabelsFileError(f"the file has no image {id_!r}")
        verdict = LabelMatcher(self.classes).match(class_name)
        if not isinstance(verdict, Matched) or verdict.how == "fuzzy":
            raise LabelsFileError(f"{class_name!r} is not one of the {len(self.classes)} classes")
        self.ambiguous.pop(id_, None)
        self.rejected.pop(id_, None)
        self.matched[id_] = self.classes[verdict.index]


def match_answers(answers: Mapping[str, str | None], classes: Sequence[str], *, threshold: float) -> LabelFile:
    """The answers, by image id, matched to the classes."""
    matcher = LabelMatcher(classes, threshold=threshold)
    file = LabelFile(matched={}, ambiguous={}, rejected={}, classes=list(classes))
    for id_, answer in answers.items():
        verdict = matcher.match(answer)
        if isinstance(verdict, Matched):
            file.matched[id_] = classes[verdict.index]
        else:
            candidates = [classes[index] for index in verdict.candidates]
            aside = SetAside(answer=answer, reason=verdict.reason, candidates=candidates)
            (file.ambiguous if isinstance(verdict, Ambiguous) else file.rejected)[id_] = aside
    return file


def read_label_file(path: Path) -> LabelFile:
    """The file at ``path``; raises LabelsFileError when it is missing or malformed."""
    try:
        return LabelFile.model_validate_json(_read(path))
    except ValidationError as error:
        raise LabelsFileError(
            f"{path} is not a file of matched labels: {error.errors()[0]['msg']}",
            hint="make one with: fedbus data labels match ANSWERS.json --classes FILE -o OUT.json",
        ) from None


def write_label_file(file: LabelFile, path: Path) -> None:
    """Writes the file; a crash leaves the old one or the new one."""
    write_atomically(path, (file.model_dump_json(indent=2) + "\n").encode())


def read_answers(path: Path) -> dict[str, str | None]:
    """Image id to answer, from a JSON file; raises LabelsFileError when it is something else."""
    try:
        return TypeAdapter(dict[str, str | None]).validate_json(_read(path))
    except ValidationError as error:
        raise LabelsFileError(f"{path} does not map image ids to texts: {error.errors()[0]['msg']}") from None


def read_classes(path: Path) -> list[str]:
    """Class names of a file: a JSON list, or one name a line.

    Raises:
        LabelsFileError: it is missing, or has fewer than two names.
    """
    text = _read(path).decode(errors="replace")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        content = [line.strip() for line in text.splitlines() if line.strip()]
    if not isinstance(content, list) or len(content) < 2 or not all(isinstance(name, str) for name in content):
        raise LabelsFileError(f"{path} is not a list of at least two class names", hint="one name a line, or JSON")
    return content


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise LabelsFileError(f"{path} cannot be read: {error.strerror}") from None
