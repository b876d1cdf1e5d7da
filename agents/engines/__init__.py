"""The native engines, each a module of this package, and which one is used: ``ort_training.py`` is ``ort-training``.

Such a module has an ``ENGINE`` (an ``EngineMaker``); nothing else has to know of it. It imports its binary when it
opens an engine and not before, so that naming engines, and choosing one, costs nothing.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

from agents.core.learning.contracts import Engine
from artifacts.manifest import ArtifactFile, ArtifactManifest
from bus.errors import FedbusError


class EngineUnknownError(FedbusError):
    """This version of fedbus does not have an engine that was asked for."""

    code = "engine_unknown"


class EngineMalformedError(FedbusError):
    """A module of this package is no engine, or cannot be imported."""

    code = "engine_malformed"


class EngineUnavailableError(FedbusError):
    """No engine, or not the one that was asked for, can run here, or can open the model's artifacts."""

    code = "engine_unavailable"


class EngineMaker(Protocol):
    """What a module of this package says of its engine, and how it opens one."""

    @property
    def label(self) -> str:
        """What the gateway, and with it every update, is told; at most 64 characters."""

    @property
    def opens(self) -> str:
        """Whose files it opens, as manifests offer them: often its own name, but engines may share theirs."""

    @property
    def preference(self) -> int:
        """Of several that can be used the one with the largest is."""

    def why_not(self) -> str | None:
        """Why it cannot run on this machine; nothing when it can."""

    def open(self, manifest: ArtifactManifest, files: Mapping[str, Path], *, threads: int) -> Engine:
        """An engine with the model of these files, by role.

        Raises:
            FedbusError: they are not what the engine takes.
        """


_PARTS = ("label", "opens", "preference", "why_not", "open")


@dataclass(frozen=True)
class Choice:
    """The engine that is used, and why it is this one."""

    name: str
    maker: EngineMaker
    reason: str

    def files(self, manifest: ArtifactManifest) -> dict[str, ArtifactFile]:
        """The files of the manifest that it opens, by role."""
        return manifest.files_of(self.maker.opens)


def engines() -> dict[str, EngineMaker]:
    """All engines by name, the preferred ones first.

    Raises:
        EngineMalformedError: a module of this package is none; the message names its file.
    """
    names = [module.name for module in pkgutil.iter_modules(__path__)]
    makers = {name.replace("_", "-"): _maker(name) for name in names}
    return dict(sorted(makers.items(), key=lambda item: (-item[1].preference, item[0])))


def _maker(name: str) -> EngineMaker:
    hint = "give it an ENGINE as ort_training.py has one, or move it out of agents/engines"
    try:
        maker = getattr(importlib.import_module(f"{__name__}.{name}"), "ENGINE", None)
    except Exception as error:
        # Whatever an unfinished file does when it is read: its name helps more than where it happened.
        raise EngineMalformedError(
            f"agents/engines/{name}.py cannot be imported: {type(error).__name__}: {error}", hint=hint
        ) from error
    lacking = [part for part in _PARTS if not hasattr(maker, part)]
    if maker is None or lacking:
        lacks = "has no ENGINE" if maker is None else f"has an ENGINE without {', '.join(lacking)}"
        raise EngineMalformedError(f"agents/engines/{name}.py {lacks}", hint=hint)
    return cast(EngineMaker, maker)


def choose(
    wanted: str | None = None,
    offered: Collection[str] | None = None,
    known: Mapping[str, EngineMaker] | None = None,
) -> Choice:
    """The engine to use.

    Args:
        wanted: the one that was asked for; none: the preferred one of those that can be used.
        offered: whose files the artifacts have (``ArtifactManifest.offered``); none while nobody knows them yet.
        known: the engines that there are; none: those of this package.

    Raises:
        EngineMalformedError: a module of this package is no engine.
        EngineUnknownError: there is none of the name that was asked for.
        EngineUnavailableError: it, or every one, cannot run here or does not find its files.
    """
    makers = engines() if known is None else known
    if wanted is not None and wanted not in makers:
        raise EngineUnknownError(f"there is no engine {wanted!r}; there is {', '.join(makers)}")
    obstacles = {name: _obstacle(maker, offered) for name, maker in makers.items() if wanted in (None, name)}
    for name, obstacle in obstacles.items():
        if obstacle is None:
            return Choice(name, makers[name], "it was asked for" if wanted else _reason(name, obstacles, makers))
    raise EngineUnavailableError(
        "; ".join(f"{name} cannot be used: {obstacle}" for name, obstacle in obstacles.items()),
        hint="name another engine with --engine, or build the artifacts for one of these",
    )


def open_engine(
    manifest: ArtifactManifest, files: Mapping[str, Path], *, choice: Choice | None = None, threads: int = 1
) -> Engine:
    """An engine with the model of a manifest, whose files lie at these paths by role; more of them do no harm.

    Raises:
        FedbusError: no engine can open it, or a file is damaged.
    """
    choice = choice or choose(offered=manifest.offered)
    return choice.maker.open(manifest, {role: files[role] for role in choice.files(manifest)}, threads=threads)


def _obstacle(maker: EngineMaker, offered: Collection[str] | None) -> str | None:
    if offered is not None and maker.opens not in offered:
        return f"the artifacts have files for {', '.join(offered) or 'no engine'} and not for {maker.opens}"
    return maker.why_not()


def _reason(name: str, obstacles: Mapping[str, str | None], makers: Mapping[str, EngineMaker]) -> str:
    if len(makers) == 1:
        return "the only one there is"
    others = [f"{other}: {why}" for other, why in obstacles.items() if why is not None]
    return f"the first of {', '.join(makers)} that can be used" + (f" ({'; '.join(others)})" if others else "")
