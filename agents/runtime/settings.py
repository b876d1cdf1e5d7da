"""What the environment may set: the settings that all processes have, and which variables there are at all."""

from __future__ import annotations

import functools
import importlib
import os
import pkgutil
from collections.abc import Callable
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict
from pydantic_settings import SettingsError as UnparsedError

import agents
import bus.broker.settings  # noqa: F401 - its class is one of those that are found
from bus.errors import FedbusError
from bus.words.problems import what_is_wrong

PREFIX = "FEDBUS_"
_ALIKE = 0.85
"""Likeness of a misspelled name to the one that is meant; what is farther from all is somebody else's."""


class SettingsError(FedbusError):
    """An environment variable has a value that it cannot have."""

    code = "settings_invalid"


class ProcessSettings(BaseSettings):
    """Each field comes from ``FEDBUS_<FIELD>``.

    What is read before there is any setting, or by a core, is declared here all the same: ``crash_at`` and
    ``crash_once`` are read by ``bus.process.crash_points``, ``strategies`` by ``agents.core.strategies.registry``.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, frozen=True, extra="ignore")

    log_json: bool = Field(default=False, description="one JSON object a line")
    crash_at: str = ""
    crash_once: Path | None = None
    strategies: str = ""


class MetricsSettings(BaseSettings):
    """Each field comes from ``FEDBUS_METRICS_<FIELD>`` unless it is given; without a port nothing is served."""

    model_config = SettingsConfigDict(env_prefix="FEDBUS_METRICS_", env_ignore_empty=True, frozen=True, extra="ignore")

    host: str = Field(default="127.0.0.1", description="address to listen on")
    port: int | None = Field(default=None, ge=0, le=65_535, description="0 picks a free one")


@functools.cache
def settings_classes() -> tuple[type[BaseSettings], ...]:
    """All classes of settings: those of the bus, and those in the ``settings`` module of each part of ``agents``.

    They are found by name, because processes do not know each other, and all of them share one environment.
    """
    for part in pkgutil.iter_modules(agents.__path__, "agents."):
        if part.ispkg and find_spec(f"{part.name}.settings") is not None:
            importlib.import_module(f"{part.name}.settings")
    ours = ("agents.", "bus.")
    return tuple(one for one in BaseSettings.__subclasses__() if one.__module__.startswith(ours))


def variable(settings: type[BaseSettings], field: str) -> str:
    """The environment variable that a field comes from."""
    alias = settings.model_fields[field].validation_alias
    return alias if isinstance(alias, str) else f"{settings.model_config.get('env_prefix', '')}{field}".upper()


def variables(settings: type[BaseSettings]) -> set[str]:
    """The environment variables that a class of settings reads."""
    return {variable(settings, field) for field in settings.model_fields}


def check_environment() -> None:
    """Sees to it that every setting of every process can be read.

    Raises:
        SettingsError: one cannot.
    """
    for one in settings_classes():
        try:
            one()
        except ValueError as error:
            raise wrong_setting(error) or error from None


def wrong_setting(error: ValueError) -> SettingsError | None:
    """The error that names the environment variable with a wrong value; nothing for an error about anything else."""
    said = _what_is_wrong(error)
    hint = "an environment variable has a value that it cannot have; see docs/operations.md"
    return None if said is None else SettingsError(said, hint=hint)


def _what_is_wrong(error: ValueError) -> str | None:
    by_name = {one.__name__: one for one in settings_classes()}
    if isinstance(error, ValidationError) and error.title in by_name:
        field, _, what = what_is_wrong(error).partition(": ")
        name = variable(by_name[error.title], field) if field in by_name[error.title].model_fields else field
        return f"{name}: {what.removeprefix(name).strip()}"
    if isinstance(error, UnparsedError):
        field = str(error).split('"')[1]
        owner = next(one for one in settings_classes() if field in one.model_fields)
        return f'{variable(owner, field)}: it is no JSON list; write ["one", "two"]'
    return None


_warned: set[str] = set()


def warn_of_misspelled(say: Callable[[str], object]) -> None:
    """Says of each variable that looks like one of fedbus's, and is none, which was probably meant: once a process."""
    given = {name for name, value in os.environ.items() if name.upper().startswith(PREFIX) and value} - _warned
    if not given:
        return
    _warned.update(given)
    known = set().union(*map(variables, settings_classes()))
    for name in sorted(given):
        near = get_close_matches(name.upper(), known, n=1, cutoff=_ALIKE)
        if near and name.upper() not in known:
            say(f"{name} is not a setting; did you mean {near[0]}?")
