"""``docs/guarantees.md`` names tests that exist, and every promise names at least one."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "guarantees.md").read_text()
PROMISES = PAGE.split("## Not promised")[0]


def test_every_test_that_the_page_names_exists() -> None:
    sources = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    exist = set(re.findall(r"^\s*(?:async )?def (test_\w+)", sources, re.MULTILINE))
    named = re.findall(r"^- `(\w+)`$", PAGE, re.MULTILINE)
    assert named
    assert set(named) <= exist


def test_every_promise_names_a_test() -> None:
    for promise in re.split(r"^(?=\*\*)", PROMISES, flags=re.MULTILINE)[1:]:
        assert re.search(r"^- `test_\w+`$", promise, re.MULTILINE), promise.splitlines()[0]
