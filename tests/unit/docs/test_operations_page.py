"""``docs/operations.md`` names every variable that an operator can set, and none that does not exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic_settings import BaseSettings

from agents.runtime.settings import settings_classes, variables

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "operations.md").read_text()
UNTOLD = {"FEDBUS_CRASH_AT", "FEDBUS_CRASH_ONCE"}
"""For tests alone."""


@pytest.mark.parametrize("settings", settings_classes())
def test_every_setting_is_on_the_page(settings: type[BaseSettings]) -> None:
    assert {name for name in variables(settings) - UNTOLD if f"`{name}`" not in PAGE} == set()


def test_every_variable_on_the_page_is_read_somewhere() -> None:
    named = set(re.findall(r"`((?:FEDBUS|NATS|OPENAI)_[A-Z_]+)`", PAGE))
    sources = "".join(path.read_text() for folder in ("agents", "bus") for path in (ROOT / folder).rglob("*.py"))
    sources += (ROOT / "compose.yaml").read_text()
    known = set().union(*map(variables, settings_classes())) | set(re.findall(r"FEDBUS_[A-Z_]+", sources))
    assert named - known == set()


def test_every_variable_that_a_program_names_is_a_setting() -> None:
    sources = [path.read_text() for folder in ("agents", "bus") for path in (ROOT / folder).rglob("*.py")]
    named = {name for text in sources for name in re.findall(r"\bFEDBUS_[A-Z_]*[A-Z]\b", text)}
    assert named - set().union(*map(variables, settings_classes())) == set()
