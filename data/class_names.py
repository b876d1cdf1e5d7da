"""Class names: read from a file, told apart where two classes share one, and found again from what somebody wrote."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from data.errors import ClassNamesError

_HINT = "write one class name a line, or JSON: a list, or an object from index to name"


def told_apart(names: Iterable[str]) -> tuple[str, ...]:
    """The names, each with its id behind it where several classes share one: ``crane`` becomes ``crane (134)``.

    Names that differ stay as they are, so telling apart a second time changes nothing.
    """
    found = tuple(names)
    while max((count := Counter(found)).values(), default=1) > 1:
        found = tuple(f"{name} ({index})" if count[name] > 1 else name for index, name in enumerate(found))
    return found


def as_given(classes: Sequence[str]) -> tuple[str, ...]:
    """The names as they were before they were told apart: what a person, or a model, calls the class."""
    plain = [name.removesuffix(f" ({index})") for index, name in enumerate(classes)]
    members = Counter(plain)
    numbered = Counter(name for name, full in zip(plain, classes, strict=True) if name != full)
    # An id is ours only where all who share the name have theirs: "Route (66)" alone is a name of its own.
    return tuple(
        name if members[name] == numbered[name] > 1 else full for name, full in zip(plain, classes, strict=True)
    )


ClassNames = Annotated[tuple[str, ...], AfterValidator(told_apart)]
"""Names of classes in the order of their ids, all different."""


class ClassLookup:
    """Finds the classes that a label or a folder's name may stand for."""

    def __init__(self, classes: Sequence[str]) -> None:
        self._classes = frozenset(classes)
        self._given: defaultdict[str, list[str]] = defaultdict(list)
        self._folded: defaultdict[str, list[str]] = defaultdict(list)
        for name, given in zip(classes, as_given(classes), strict=True):
            self._given[given].append(name)
            for form in {name.casefold(), given.casefold()}:
                self._folded[form].append(name)

    def find(self, label: str) -> tuple[str, ...]:
        """The classes of this name, or else of this name in any case: none, one, or several that share it."""
        if label in self._classes:
            return (label,)
        return tuple(self._given.get(label) or self._folded.get(label.casefold()) or ())


def read_class_names(path: Path) -> tuple[str, ...]:
    """The class names in a file, told apart: one a line, a JSON list, or a JSON object from index to name (id2label).

    Raises ClassNamesError when the file cannot be read, or holds fewer than two names or an empty one.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, ValueError) as error:
        raise ClassNamesError(f"cannot read class names from {path}: {error}", hint=_HINT) from None
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        content = None
    if isinstance(content, Mapping):
        content = [content.get(str(index)) for index in range(len(content))]
    if not isinstance(content, list):
        if path.suffix == ".json":
            raise ClassNamesError(f"{path} holds no list of class names", hint=_HINT)
        content = [line.strip() for line in text.splitlines() if line.strip()]
    if len(content) < 2 or not all(isinstance(name, str) and name.strip() for name in content):
        raise ClassNamesError(f"{path} is not a list of at least two class names, none of them empty", hint=_HINT)
    return told_apart(content)
