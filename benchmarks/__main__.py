"""Runs all benchmarks, or those named: ``python -m benchmarks [bus objects ...]``; each in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def main() -> None:
    """Exits with 1 when one of them failed, after all have run."""
    known = sorted(path.stem.removeprefix("bench_") for path in Path(__file__).parent.glob("bench_*.py"))
    names = sys.argv[1:] or known
    if unknown := sorted(set(names) - set(known)):
        sys.exit(f"no benchmark named {', '.join(unknown)}; there are {', '.join(known)}")
    failed = [name for name in names if subprocess.run([sys.executable, "-m", f"benchmarks.bench_{name}"]).returncode]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
