"""How a benchmark reports: a table on the terminal and a JSON file under ``benchmarks/out``."""

from __future__ import annotations

import json
import os
import platform
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

OUT = Path(__file__).parent / "out"
Value = float | int | str | bool | None


def report(name: str, *, ours: float, reference: float | None, unit: str, goal: str = "", **extra: Value) -> None:
    """Prints one result and writes it to ``benchmarks/out/<name>.json``.

    ``ours`` and ``reference``, which was measured in the same run or is none, are in ``unit``; their ratio is ours over
    reference, whichever way is better. ``goal``
    says in words what the ratio should be; ``extra`` holds further figures.
    """
    result = {
        "name": name,
        "ours": ours,
        "reference": reference,
        "ratio": ours / reference if reference else None,
        "unit": unit,
        "goal": goal,
        **extra,
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    OUT.mkdir(exist_ok=True)
    (OUT / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
    table = Table(title=name, show_header=False)
    for key, value in result.items():
        table.add_row(key, f"{value:,.4g}" if isinstance(value, float) else str(value))
    Console().print(table)
