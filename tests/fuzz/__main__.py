"""``make fuzz``: gives every parser of foreign input its share of a million inputs, and tells what broke."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import math
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.fuzz.targets import TARGETS, Target

REGRESSIONS = Path(__file__).parent / "regressions"
INPUT_LIMIT_S = 5
MEMORY_LIMIT_MB = 2048
_EXECUTED = re.compile(r"stat::number_of_executed_units:\s*(\d+)")


@dataclass(frozen=True)
class Outcome:
    """What became of one target; ``found`` lists the inputs that broke it, ``tail`` how the fuzzer ended."""

    inputs: int
    seconds: float
    found: list[Path]
    failed: bool
    tail: str


def fuzz(target: Target, inputs: int, seed: int) -> Outcome:
    """Runs ``inputs`` inputs in a process of their own; an input that breaks the parser or takes too long ends it.

    What breaks it is kept in ``regressions/``.
    """
    kept = REGRESSIONS / target.name
    kept.mkdir(parents=True, exist_ok=True)
    before, began = set(kept.iterdir()), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fedbus-fuzz-") as corpus:
        for number, content in enumerate(target.seeds()):
            Path(corpus, f"seed-{number}").write_bytes(content)
        command = [sys.executable, "-m", "tests.fuzz.one", target.name, corpus, f"-runs={inputs}", f"-seed={seed}"]
        command += [f"-artifact_prefix={kept}/", f"-timeout={INPUT_LIMIT_S}", f"-rss_limit_mb={MEMORY_LIMIT_MB}"]
        command += ["-max_len=65536", "-len_control=0", "-print_final_stats=1"]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    executed = _EXECUTED.search(done.stderr)
    found = sorted(set(kept.iterdir()) - before)
    with contextlib.suppress(OSError):
        kept.rmdir()
    failed = done.returncode != 0 or bool(found)
    tail = "\n".join(done.stdout.splitlines()[-15:] + done.stderr.splitlines()[-3:]) if failed else ""
    return Outcome(int(executed[1]) if executed else 0, time.monotonic() - began, found, failed, tail)


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when nothing broke and every target had its inputs."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=1_000_000, help="in all, shared among the targets")
    parser.add_argument("--target", choices=sorted(TARGETS), action="append", help="only this one; may be repeated")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    if importlib.util.find_spec("atheris") is None:
        print("atheris is missing: pip install -e '.[fuzz]'", file=sys.stderr)
        return 2
    targets = [TARGETS[name] for name in options.target or TARGETS]
    shares = sum(target.share for target in targets)
    table = Table("target", "inputs", "seconds", "broken by", title="Fuzzing")
    total, seconds, broken = 0, 0.0, 0
    console = Console()
    for target in targets:
        outcome = fuzz(target, math.ceil(options.inputs * target.share / shares), options.seed)
        total, seconds, broken = total + outcome.inputs, seconds + outcome.seconds, broken + outcome.failed
        names = ", ".join(path.name[:16] for path in outcome.found) or ("the fuzzer failed" if outcome.failed else "-")
        table.add_row(target.name, f"{outcome.inputs:,}", f"{outcome.seconds:.1f}", names)
        console.print(f"{target.name}: {outcome.inputs:,} inputs, {outcome.seconds:.1f} s", highlight=False)
        if outcome.failed:
            console.print(outcome.tail, highlight=False, markup=False)
    table.add_section()
    table.add_row("all", f"{total:,}", f"{seconds:.1f}", str(broken) if broken else "-")
    console.print(table)
    return 1 if broken or total < options.inputs else 0


if __name__ == "__main__":
    sys.exit(main())
