"""Reads and writes the files of ``fedbus data labels``: answers, and what became of them."""

from __future__ import annotations

from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from agents.core.labels.errors import LabelsFileError
from agents.core.labels.label_file import LabelFile
from bus.process.files import write_atomically
from bus.words.problems import what_is_wrong


def read_label_file(path: Path) -> LabelFile:
    """The file at ``path``; raises LabelsFileError when it is missing or malformed."""
    try:
        return LabelFile.model_validate_json(_read(path))
    except ValidationError as error:
        raise LabelsFileError(
            f"{path} is not a file of matched labels: {what_is_wrong(error)}",
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
        raise LabelsFileError(f"{path} does not map image ids to texts: {what_is_wrong(error)}") from None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise LabelsFileError(f"{path} cannot be read: {error.strerror}") from None
