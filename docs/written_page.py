"""A page of docs/ that is written from the code: writes it, or sees whether it is up to date."""

from __future__ import annotations

import sys
from pathlib import Path


def keep(page: Path, text: str, arguments: list[str], *, sound: bool = True) -> int:
    """Writes the page; with ``--check`` says instead, by the exit code, whether it is ``sound`` and up to date."""
    if "--check" not in arguments:
        page.write_text(text)
        return 0
    if sound and page.exists() and page.read_text() == text:
        return 0
    sys.stderr.write(f"{page.name} is stale: run `make docs`\n")
    return 1
