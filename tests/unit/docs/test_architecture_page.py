"""docs/architecture.md is what the code draws."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_the_page_is_what_the_code_draws() -> None:
    checked = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "draw_architecture.py"), "--check"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=ROOT,
    )
    assert checked.returncode == 0, checked.stderr


def test_every_room_is_on_the_page() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    rooms = [path.parent.name for building in ("bus", "agents") for path in (ROOT / building).glob("*/__init__.py")]
    assert len(rooms) > 15
    assert [name for name in rooms if f"**{name}.**" not in page] == []
