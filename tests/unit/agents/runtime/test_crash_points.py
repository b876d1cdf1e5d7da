"""A crash point that does not exist is refused by whatever is started with it, before it does anything."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize("process", ["labeller", "client"])
def test_a_crash_point_that_does_not_exist_is_refused_at_the_start(process: str) -> None:
    environment = {**os.environ, "FEDBUS_CRASH_AT": "publisher.between_windows,labeller.recieved:2"}
    command = [sys.executable, "-m", f"agents.{process}"]
    done = subprocess.run(command, env=environment, capture_output=True, timeout=60, check=False)
    assert done.returncode == 1
    assert b"FEDBUS_CRASH_AT names labeller.recieved [" in done.stderr
    assert b"labeller.received" in done.stderr
