"""``docs/errors.md`` has a section for every error code that the sources can raise or say, and for no other."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from agents.core.exchange.answers import ERRORS, REJECTIONS
from agents.words.events import RejectionCode

ROOT = Path(__file__).parents[3]
PACKAGES = ("agents", "artifacts", "bus", "data")
_SAYING = {"ProtocolError": 0, "UpdateRefusedError": 0, "AccessRefusedError": 0, "ErrorMessage": None}
"""Calls whose code is an argument: its position, or none where it is always named."""


def _codes() -> Iterator[str]:
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ClassDef) and node.name.endswith("Error"):
                    yield from _code_of_class(node)
                elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _SAYING:
                    yield from _code_of_call(node, _SAYING[node.func.id])


def _code_of_class(node: ast.ClassDef) -> Iterator[str]:
    for line in node.body:
        if isinstance(line, ast.Assign) and any(
            isinstance(name, ast.Name) and name.id == "code" for name in line.targets
        ):
            assert isinstance(line.value, ast.Constant)
            yield str(line.value.value)


def _code_of_call(node: ast.Call, place: int | None) -> Iterator[str]:
    codes = node.args[place : place + 1] if place is not None else []
    codes += [keyword.value for keyword in node.keywords if keyword.arg == "code"]
    yield from (str(code.value) for code in codes if isinstance(code, ast.Constant))


def _sections() -> list[str]:
    return re.findall(r"^### (.+)$", (ROOT / "docs" / "errors.md").read_text(), re.MULTILINE)


def test_every_error_code_has_a_section_and_no_section_is_stale() -> None:
    codes = set(_codes())
    assert {"bad_message", "token", "busy", "internal", "port_taken"} <= codes
    assert set(_sections()) == codes | set(get_args(RejectionCode)) | ERRORS.keys() | REJECTIONS.keys()


def test_no_code_has_two_sections() -> None:
    sections = _sections()
    assert len(sections) == len(set(sections))
