"""How often which class was taken for which, as it stands in JSON: in full for few classes, else without the zeros."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PlainSerializer

from bus.words.values import Frozen

MOST_IN_FULL = 100
"""Classes whose counts are written in full: beyond, nearly all are 0, and a thousand classes have a million."""


class _Sparse(Frozen):
    """Square counts without their zeros: a cell is [true, predicted, count]."""

    classes: int = Field(ge=1, le=10_000)
    cells: tuple[tuple[int, int, int], ...]

    def rows(self) -> list[list[int]]:
        """The counts in full."""
        rows = [[0] * self.classes for _ in range(self.classes)]
        for true, predicted, count in self.cells:
            if not (0 <= true < self.classes and 0 <= predicted < self.classes):
                raise ValueError(f"[{true}, {predicted}, {count}] is outside of {self.classes} classes")
            rows[true][predicted] = count
        return rows


def _read(value: Any) -> Any:
    return _Sparse.model_validate(value).rows() if isinstance(value, Mapping) else value


def _write(rows: tuple[tuple[int, ...], ...]) -> Any:
    if len(rows) <= MOST_IN_FULL:
        return rows
    cells = ((true, at, count) for true, row in enumerate(rows) for at, count in enumerate(row) if count)
    return _Sparse(classes=len(rows), cells=tuple(cells))


ConfusionCounts = Annotated[
    tuple[tuple[int, ...], ...], BeforeValidator(_read), PlainSerializer(_write, when_used="json")
]
"""Numbers of images, ``[true][predicted]``.

In JSON either the rows, or for more than ``MOST_IN_FULL`` classes ``{"classes": n, "cells": [[true, predicted, count],
…]}`` without the zeros; both are read, whatever the number of classes.
"""
