"""What CONTRIBUTING says of layers beyond imports: who builds subjects, and who configures streams."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[3]
SOURCES = [path for building in ("bus", "agents", "artifacts", "data") for path in (ROOT / building).rglob("*.py")]
_SUBJECT = re.compile(r"(ev|dlq|hb|progress|token)\.[\w*>{]")


def texts(tree: ast.AST) -> Iterator[str]:
    """Every text literal that is no docstring, and the fixed beginning of every f-string."""
    statements = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in statements:
            yield node.value


def test_only_one_module_builds_subjects() -> None:
    builders = {
        str(path.relative_to(ROOT))
        for path in SOURCES
        if any(_SUBJECT.match(text) or text in ("ev.", "dlq.") for text in texts(ast.parse(path.read_text())))
    }
    assert builders == {"bus/words/subjects.py"}


def test_only_one_module_configures_streams() -> None:
    named = {str(path.relative_to(ROOT)) for path in SOURCES if re.search(r"\bStreamConfig\(", path.read_text())}
    assert named == {"bus/broker/topology.py"}
