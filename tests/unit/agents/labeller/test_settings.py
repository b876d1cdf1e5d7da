"""The labeller's settings from the environment."""

from __future__ import annotations

import pytest

from agents.labeller.settings import LabellerSettings


def test_a_variable_that_is_set_to_nothing_counts_as_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "FEDBUS_LABELLER_MAX_COST", "FEDBUS_LABELS_FILE"):
        monkeypatch.setenv(name, "")
    settings = LabellerSettings()
    assert settings.openai_api_key is None
    assert settings.openai_base_url is None
    assert settings.max_cost is None
    assert settings.labels_file is None
