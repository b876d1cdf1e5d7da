"""The kinds of task, each a module of this package: ``image_classification.py`` is the kind ``image-classification``.

Such a module has a function ``open_kind(model: ModelFacts) -> TaskKind``; nothing else has to know of it.
"""

from __future__ import annotations

import importlib
import pkgutil

from agents.core.learning.contracts import ModelFacts, TaskKind
from bus.errors import FedbusError


class TaskKindUnknownError(FedbusError):
    """This version of fedbus does not have a kind of task that a run names."""

    code = "task_kind_unknown"


def kinds() -> tuple[str, ...]:
    """The names of all kinds of task, sorted."""
    return tuple(sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(__path__)))


def check_kind(name: str) -> None:
    """Sees to it that there is a kind of task of this name.

    Raises:
        TaskKindUnknownError: there is none.
    """
    if name not in kinds():
        raise TaskKindUnknownError(
            f"there is no kind of task {name!r}; there is {', '.join(kinds())}",
            hint="update fedbus, or start the run with a kind that this version has",
        )


def open_kind(name: str, model: ModelFacts) -> TaskKind:
    """The kind of task ``name`` for this model.

    Raises:
        TaskKindUnknownError: there is none of this name.
    """
    check_kind(name)
    kind: TaskKind = importlib.import_module(f"{__name__}.{name.replace('-', '_')}").open_kind(model)
    return kind
