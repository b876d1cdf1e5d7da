"""What several things that run together fail with."""

from __future__ import annotations

from typing import NoReturn


def raise_first(failures: BaseExceptionGroup[BaseException]) -> NoReturn:
    """Raises the first of several failures as itself, so that callers can name the error they expect.

    A group is caught by no ``except`` and no ``suppress`` that names what it holds (Python 3.11). The first counts,
    because others often follow from it; they stay in the traceback as its cause.
    """
    first = failures.exceptions[0]
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    raise first from (failures if len(failures.exceptions) > 1 else None)
