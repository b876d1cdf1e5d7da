"""``docs/operations.md`` names every variable that an operator can set, and none that does not exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic_settings import BaseSettings

from agents.gateway.settings import GatewaySettings
from agents.labeller.settings import LabellerSettings
from agents.runtime.metrics import MetricsSettings
from bus.broker.settings import BusSettings

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "operations.md").read_text()
SETTINGS = (BusSettings, GatewaySettings, LabellerSettings, MetricsSettings)


def _variables(settings: type[BaseSettings]) -> set[str]:
    prefix = settings.model_config["env_prefix"]
    fields = settings.model_fields.items()
    return {str(field.validation_alias or f"{prefix}{name}".upper()) for name, field in fields}


@pytest.mark.parametrize("settings", SETTINGS)
def test_every_setting_is_on_the_page(settings: type[BaseSettings]) -> None:
    assert {name for name in _variables(settings) if f"`{name}`" not in PAGE} == set()


def test_every_variable_on_the_page_is_read_somewhere() -> None:
    named = set(re.findall(r"`((?:FEDBUS|NATS|OPENAI)_[A-Z_]+)`", PAGE))
    sources = "".join(path.read_text() for folder in ("agents", "bus") for path in (ROOT / folder).rglob("*.py"))
    sources += (ROOT / "compose.yaml").read_text()
    known = set().union(*map(_variables, SETTINGS)) | set(re.findall(r"FEDBUS_[A-Z_]+", sources))
    assert named - known == set()
