"""What kinds of task are told of a model, in tests."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Facts:
    """A model of images."""

    classes: tuple[str, ...] = ("a", "b", "c")
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)


GREY = Facts()
