"""The labeller's settings from the environment."""

from __future__ import annotations

import pytest

from agents.labeller.errors import ApiKeyUnusableError
from agents.labeller.settings import LabellerSettings


def test_a_variable_that_is_set_to_nothing_counts_as_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "FEDBUS_LABELLER_MAX_COST", "FEDBUS_LABELS_FILE"):
        monkeypatch.setenv(name, "")
    settings = LabellerSettings()
    assert settings.openai_api_key is None
    assert settings.openai_base_url is None
    assert settings.max_cost is None
    assert settings.labels_file is None


@pytest.mark.parametrize("key", ["sk-“quoted”", "sk-a\nb", "sk a", "sk-a\n", "\x7f"])
def test_a_key_that_no_request_can_carry_is_refused_and_not_tried_for_ever(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(ApiKeyUnusableError) as raised:
        LabellerSettings().api_key()
    assert key not in str(raised.value)


def test_a_key_of_any_printable_characters_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "!sk-~")
    assert LabellerSettings().api_key() == "!sk-~"
