"""A run's settings as a TOML file: read for ``run start --config``, written by ``run show --toml``."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agents.cli.run_setup import RunSources
from agents.core.learning.augment import default_augmentation
from agents.words.events import RunStarted
from agents.words.run_config import RunConfig
from artifacts.manifest import load_manifest
from bus.errors import FedbusError
from bus.words.problems import what_is_wrong

HEAD = """# The settings of the fedbus run {run}: fedbus run start --config FILE starts the same again.
# On another bus, put files in place of [objects]:
# [sources]
# artifacts = "DIR"    data = "DIR"    held_out = "DIR"    partition = "in-order"

"""


class RunFileError(FedbusError):
    """A file of run settings cannot be read, or says something that a run does not have."""

    code = "run_file_invalid"


class _Sources(BaseModel):
    model_config = ConfigDict(extra="forbid")

    artifacts: Path = RunSources.artifacts
    data: Path = RunSources.users
    held_out: Path = RunSources.held_out
    partition: str = RunSources.partition


class RunObjects(BaseModel):
    """Names of a run's objects that are in the store already."""

    model_config = ConfigDict(extra="forbid")

    dataset: str = Field(pattern=r"^sha256-[0-9a-f]{64}$")
    artifacts: str = Field(pattern=r"^sha256-[0-9a-f]{64}$")
    base_model: str = Field(pattern=r"^sha256-[0-9a-f]{64}$")


@dataclass(frozen=True)
class RunFile:
    """What a file says: the config, and where data and model come from."""

    config: RunConfig
    sources: RunSources | RunObjects


def read_run_file(path: Path) -> RunFile:
    """The run that a file describes; what it leaves out has its default, paths count from the file's folder.

    Raises:
        RunFileError: it cannot be read, or has a key or a value that no run has.
        FedbusError: its artifacts are missing or damaged.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
        objects = content.pop("objects", None)
        sources = _sources(content.pop("sources", {}), path.parent)
        training = content.setdefault("training", {})
        training.setdefault("augmentation", default_augmentation().model_dump())
        if objects is None and "learning_rate" not in training:
            training["learning_rate"] = load_manifest(sources.artifacts, verify=False).optimizer.learning_rate
        _check_keys(content, RunConfig, "")
        config = RunConfig.model_validate(content)
        return RunFile(config, sources if objects is None else RunObjects.model_validate(objects))
    except OSError as error:
        raise RunFileError(f"{path} cannot be read: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, AttributeError) as error:
        raise RunFileError(f"{path} is no TOML file of settings: {error}") from None
    except ValidationError as error:
        raise RunFileError(f"{path}: {what_is_wrong(error)}", hint="fedbus run show RUN --toml prints one") from None


def as_toml(started: RunStarted) -> str:
    """A file that starts the same run again on the same bus."""
    objects = {
        "dataset": started.dataset.name,
        "artifacts": started.artifacts.name,
        "base_model": started.base_model.name,
    }
    content = started.config.model_dump(mode="json") | {"objects": objects}
    return HEAD.format(run=started.run) + "\n".join(_lines(content)) + "\n"


def _sources(content: Mapping[str, Any], folder: Path) -> RunSources:
    said = _Sources.model_validate(content)
    return RunSources(folder / said.artifacts, folder / said.data, folder / said.held_out, said.partition)


def _check_keys(content: Mapping[str, Any], model: type[BaseModel], place: str) -> None:
    """Refuses a key that the model ignores: a setting that is misspelt would have no effect."""
    for name, value in content.items():
        if name not in model.model_fields:
            known = ", ".join(model.model_fields)
            raise RunFileError(f"a run has no setting {place}{name}", hint=f"there are {known}")
        kind = model.model_fields[name].annotation
        if isinstance(value, Mapping) and isinstance(kind, type) and issubclass(kind, BaseModel):
            _check_keys(value, kind, f"{place}{name}.")


def _lines(content: Mapping[str, Any], table: str = "") -> Iterator[str]:
    # What is none has no word in TOML; it is left out, and none is what a run has without it.
    plain = {name: value for name, value in content.items() if not isinstance(value, Mapping) and value is not None}
    if table and plain:
        yield f"\n[{table}]"
    for name, value in plain.items():
        # JSON's texts, numbers, booleans and lists of them are TOML's too.
        yield f"{name} = {json.dumps(value, ensure_ascii=True)}"
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from _lines(value, f"{table}.{name}" if table else name)
