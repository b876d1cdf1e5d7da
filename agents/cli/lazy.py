"""Groups of commands whose modules are imported when a command is called or its help is shown, and not before."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Mapping
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup
from typer.main import get_command, get_group


class _Commands(UserDict[str, Any]):
    """Commands by name; the values are places, as ``module:attribute``, until somebody wants the command."""

    def __getitem__(self, name: str) -> Any:
        if isinstance(found := super().__getitem__(name), str):
            self.data[name] = found = _command(name, found)
        return found


def _command(name: str, place: str) -> Any:
    """The command ``name``, which is a function, or a group of them."""
    module, attribute = place.split(":")
    found = getattr(import_module(module), attribute)
    if isinstance(found, typer.Typer):
        command: Any = get_group(found)
        command.name = name
        return command
    alone = typer.Typer(add_completion=False)
    alone.command(name)(found)
    return get_command(alone)


def lazy(places: Mapping[str, str]) -> type[TyperGroup]:
    """The class of a group with these commands: ``module:attribute`` by name, a function or a ``Typer``."""

    class Group(TyperGroup):
        def __init__(self, **attributes: Any) -> None:
            super().__init__(**{**attributes, "commands": _Commands(places)})

        def list_commands(self, ctx: Any) -> list[str]:
            return list(self.commands)

    return Group
