"""A command imports what it needs and no more: most of them end before what trains, serves or draws is loaded."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from agents.cli.main import COMMANDS, RUN_COMMANDS, app

HEAVY = {"PIL", "httpx", "matplotlib", "numpy", "onnx", "onnxruntime", "openai", "rapidfuzz", "starlette", "torch"}
HEAVY |= {"transformers", "uvicorn", "watchfiles"}
WATCHED = """
import sys
from agents.cli.main import main
try:
    main()
finally:
    print("imported", *{name.partition(".")[0] for name in sys.modules}, file=sys.stderr)
"""


def imported(folder: Path, *words: str) -> set[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("FEDBUS_", "NATS_"))}
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, *words], cwd=folder, env=kept, capture_output=True, text=True, check=False
    )
    said, found, names = done.stderr.rpartition("imported ")
    assert found, said
    return set(names.split())


def test_the_version_costs_almost_nothing(tmp_path: Path) -> None:
    assert not imported(tmp_path, "--version") & (HEAVY | {"nats", "pydantic"})


@pytest.mark.parametrize("command", ["env", "page", "run list --help", "token --help", "dlq --help", "agent --help"])
def test_what_only_asks_the_bus_loads_nothing_that_trains_serves_or_draws(command: str, tmp_path: Path) -> None:
    assert not imported(tmp_path, *command.split()) & HEAVY


def test_not_even_all_of_them_together_load_a_runtime_or_a_web_server(tmp_path: Path) -> None:
    assert not imported(tmp_path, "--help") & {"matplotlib", "onnx", "onnxruntime", "openai", "torch", "uvicorn"}


@pytest.mark.parametrize(("words", "names"), [((), COMMANDS), (("run",), RUN_COMMANDS)])
def test_every_command_is_listed_and_has_help(words: tuple[str, ...], names: dict[str, str]) -> None:
    listed = CliRunner().invoke(app, [*words, "--help"]).output
    for name in names:
        assert f" {name} " in listed
        said = CliRunner().invoke(app, [*words, name, "--help"])
        assert said.exit_code == 0
        assert f"Usage: fedbus {' '.join([*words, name])}" in said.output
