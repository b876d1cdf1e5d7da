"""docs/protocol.md is what the code says, and its tables of codes are complete."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from agents.core.exchange import answers
from agents.core.exchange.answers import ERRORS, FAREWELLS, REJECTIONS, Farewell
from agents.words.events import RejectionCode

ROOT = Path(__file__).parents[3]
GATEWAY = [*(ROOT / "agents" / "core" / "exchange").glob("*.py"), *(ROOT / "agents" / "gateway").glob("*.py")]

HTTP_ALONE = {"too_many_feeds", "host"}
"""Never said over the WebSocket."""


def _calls(name: str) -> Iterator[ast.Call]:
    for path in GATEWAY:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).rsplit(".", 1)[-1] == name:
                yield node


def _said(*names: str) -> dict[str, bool]:
    """The codes of these calls, and whether they are fatal."""
    found = {}
    for name in names:
        for call in _calls(name):
            named = {keyword.arg: keyword.value for keyword in call.keywords}
            code = named.get("code") or (call.args[0] if call.args else None)
            if isinstance(code, ast.Constant):
                fatal = named.get("fatal")
                found[str(code.value)] = isinstance(fatal, ast.Constant) and bool(fatal.value)
    return found


def test_the_page_is_what_the_code_says() -> None:
    checked = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "write_protocol.py"), "--check"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=ROOT,
    )
    assert checked.returncode == 0, checked.stderr


def test_every_error_that_the_gateway_can_say_is_in_the_table_and_no_other() -> None:
    errors = _said("ProtocolError")
    # The library's own of the same name, which has words and no code.
    errors.pop("too many frames")
    # Whoever is refused by the rules of access is turned away by presence, which makes all of them fatal.
    errors |= dict.fromkeys(_said("AccessRefusedError").keys() - HTTP_ALONE, True)
    assert errors == {code: one.fatal for code, one in ERRORS.items()}


def test_every_rejection_that_the_gateway_can_say_is_in_the_table_and_no_other() -> None:
    own = set(_said("UploadRejected"))
    assert own == {"gateway"}
    assert set(_said("UpdateRefusedError")) <= set(get_args(RejectionCode))
    # A task that nobody can do is rejected in the stream alone.
    assert REJECTIONS.keys() == own | set(get_args(RejectionCode)) - {"refused"}


def test_every_farewell_is_in_the_table_and_nothing_else_closes_a_connection() -> None:
    named = {one for one in vars(answers).values() if isinstance(one, Farewell)}
    assert named == FAREWELLS.keys()
    assert len({one.reason for one in FAREWELLS}) == len(FAREWELLS)
    for call in _calls("close"):
        assert not any(isinstance(one, ast.Constant) and isinstance(one.value, str) for one in call.args), call.lineno
    assert all(re.fullmatch(r"[a-z_]+", one.reason) for one in FAREWELLS)


def test_what_is_fatal_is_said_so_beside_the_errors() -> None:
    page = (ROOT / "docs" / "errors.md").read_text()
    marked = set(re.findall(r"^### (.+)\n\*Fatal\.\*", page, re.MULTILINE))
    assert marked == {code for code, one in ERRORS.items() if one.fatal}


def test_each_code_is_explained_where_it_belongs() -> None:
    page = (ROOT / "docs" / "errors.md").read_text()
    chapters = {
        title: set(re.findall(r"^### (.+)$", text, re.MULTILINE))
        for title, text in re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    }
    assert chapters["Updates that do not count"] == REJECTIONS.keys() | {"refused"}
    assert chapters["Said by the gateway to a client"] - HTTP_ALONE == ERRORS.keys() | {"protocol"}
