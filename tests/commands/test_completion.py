"""The shell completes what fedbus understands, from the script that it installs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands.conftest import ROOT

ASKED = {
    "bash": 'COMP_WORDS=(fedbus ru) COMP_CWORD=1; _fedbus_completion fedbus; echo "${COMPREPLY[@]}"',
    "zsh": "_FEDBUS_COMPLETE=complete_zsh _TYPER_COMPLETE_ARGS='fedbus ru' fedbus",
}
SOURCED = {"bash": "", "zsh": "autoload -Uz compinit && compinit -u -D; "}


@pytest.mark.parametrize("shell", ASKED)
def test_a_shell_completes_a_command(shell: str, tmp_path: Path) -> None:
    if (program := shutil.which(shell)) is None:
        pytest.skip(f"no {shell} here")
    command = tmp_path / "fedbus"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m agents.cli "$@"\n')
    command.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
    script = tmp_path / "completion"
    shown = subprocess.run(
        [command],
        env={**environment, "_FEDBUS_COMPLETE": f"source_{shell}"},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    script.write_text(shown.stdout)
    done = subprocess.run(
        [program, "-c", f"set -e; {SOURCED[shell]}source {script}; {ASKED[shell]}"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.stderr == ""
    assert "run" in done.stdout.replace('"', " ").split()
