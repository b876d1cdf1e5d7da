"""Finds a strategy by the name that a run gives it, and gives it the run's settings."""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import pkgutil
import re
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

import agents.core.strategies as package
from agents.core.strategies.strategy import Strategy
from bus.errors import FedbusError
from bus.words.problems import what_is_wrong

AnyStrategy = Strategy[Any]
ALLOWED = "FEDBUS_STRATEGIES"
"""Names modules, or classes as ``module:Class``, that may be imported as strategies; commas between them."""
_OWN_CLASS = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):([A-Za-z_]\w*)", re.ASCII)


class UnknownStrategyError(FedbusError):
    """No strategy has this name."""

    code = "strategy_unknown"


class StrategySettingsError(FedbusError):
    """A strategy has no such setting, or does not take this value for it."""

    code = "strategy_settings"


class StrategyNotAllowedError(FedbusError):
    """A run or recording names a class of somebody's own that this machine was not told to import."""

    code = "strategy_not_allowed"


@functools.cache
def built_in() -> Mapping[str, type[AnyStrategy]]:
    """The strategies of this package by name: every class with a ``NAME`` in any of its modules."""
    modules = [
        importlib.import_module(f"{package.__name__}.{one.name}") for one in pkgutil.iter_modules(package.__path__)
    ]
    found = {
        one.NAME: one
        for module in modules
        for one in vars(module).values()
        if inspect.isclass(one) and issubclass(one, Strategy) and one.NAME and one.__module__ == module.__name__
    }
    return dict(sorted(found.items()))


def strategy_named(name: str, settings: Mapping[str, object]) -> AnyStrategy:
    """The strategy called ``name``, or of the class ``module:Class``, with these settings.

    Raises:
        StrategyNotAllowedError: it is a class of somebody's own that ``FEDBUS_STRATEGIES`` does not name.
        UnknownStrategyError: there is none, or the class cannot be imported here or is no strategy.
        StrategySettingsError: it does not have one of the settings, or not with this value.
    """
    found = built_in().get(name) or _own_class(name)
    if not _is_sound(found):
        raise UnknownStrategyError(
            f"{name} is no strategy", hint="VECTORS is a tuple of different names, CLIPS is True or False"
        )
    try:
        return found(**settings)
    except ValidationError as error:
        known = ", ".join(found.model_fields) or "none"
        raise StrategySettingsError(
            f"strategy {name}: {what_is_wrong(error, part='setting')}", hint=f"its settings: {known}"
        ) from None
    except Exception as error:  # whatever a class of somebody's own raises when it is made
        known = ", ".join(found.model_fields) or "none"
        raise StrategySettingsError(
            f"strategy {name} cannot be made: {type(error).__name__}: {error}"[:400], hint=f"its settings: {known}"
        ) from None


def _is_sound(found: type[AnyStrategy]) -> bool:
    names: object = found.VECTORS
    return (
        isinstance(names, tuple)
        and all(isinstance(one, str) for one in names)
        and len(set(names)) == len(names)
        and isinstance(found.CLIPS, bool)
    )


def _own_class(name: str) -> type[AnyStrategy]:
    match = _OWN_CLASS.fullmatch(name)
    if match is None:
        raise UnknownStrategyError(
            f"there is no strategy {name!r}", hint=f"use {', '.join(built_in())}, or a class of your own: module:Class"
        )
    if not {name, match[1]} & {one.strip() for one in os.environ.get(ALLOWED, "").split(",")}:
        # To import a module is to run it: who starts a run, or made a recording, must not choose which.
        raise StrategyNotAllowedError(
            f"strategy {name} is not one that may be imported here",
            hint=f"if you trust it, set {ALLOWED}={name}, here and for dispatcher and aggregator",
        )
    try:
        found = getattr(importlib.import_module(match[1]), match[2])
    except Exception as error:  # whatever the module raises: it is somebody else's
        raise UnknownStrategyError(
            f"strategy {name} cannot be imported: {type(error).__name__}: {error}",
            hint="put its folder into PYTHONPATH, here and for dispatcher and aggregator",
        ) from None
    if not (inspect.isclass(found) and issubclass(found, Strategy)) or inspect.isabstract(found):
        raise UnknownStrategyError(
            f"{name} is no strategy", hint="subclass agents.core.strategies.strategy.Strategy: gather and step"
        )
    return found
