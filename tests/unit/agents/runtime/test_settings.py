"""A variable with a wrong value is named, and one with a misspelled name is told with the one that was meant."""

from __future__ import annotations

import pytest

from agents.runtime import settings as module
from agents.runtime.settings import SettingsError, check_environment, variables, warn_of_misspelled
from agents.runtime.settings import settings_classes as classes

MEANT = {
    "FEDBUS_LABELER_CACHE": "FEDBUS_LABELLER_CACHE",
    "FEDBUS_GATEWAY_ORIGIN": "FEDBUS_GATEWAY_ORIGINS",
    "FEDBUS_REPLICA": "FEDBUS_REPLICAS",
    "FEDBUS_LOGJSON": "FEDBUS_LOG_JSON",
    "FEDBUS_CHROMUIM": "FEDBUS_CHROMIUM",
    "FEDBUS_METRICS_PORTS": "FEDBUS_METRICS_PORT",
}
WRONG = {
    "FEDBUS_GATEWAY_ORIGINS": ("http://x", 'FEDBUS_GATEWAY_ORIGINS: it is no JSON list; write ["one", "two"]'),
    "FEDBUS_GATEWAY_PORT": ("99999", "FEDBUS_GATEWAY_PORT: Input should be less than or equal to 65535"),
    "FEDBUS_REPLICAS": ("2", "FEDBUS_REPLICAS: is 1, 3 or 5"),
    "FEDBUS_LOG_BYTES": ("1", "FEDBUS_LOG_BYTES: Input should be greater than or equal to 4096"),
    "FEDBUS_LOG_JSON": ("perhaps", "FEDBUS_LOG_JSON: Input should be a valid boolean"),
    "FEDBUS_LABELLER_ATTEMPTS": ("many", "FEDBUS_LABELLER_ATTEMPTS: Input should be a valid integer"),
    "FEDBUS_METRICS_PORT": ("-1", "FEDBUS_METRICS_PORT: Input should be greater than or equal to 0"),
}


def warned(monkeypatch: pytest.MonkeyPatch, *names: str) -> list[str]:
    monkeypatch.setattr(module, "_warned", set())
    for name in names:
        monkeypatch.setenv(name, "1")
    said: list[str] = []
    for _ in range(2):
        warn_of_misspelled(said.append)
    return said


@pytest.mark.parametrize("name", MEANT)
def test_a_misspelled_variable_is_told_once_with_the_one_that_was_meant(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert warned(monkeypatch, name) == [f"{name} is not a setting; did you mean {MEANT[name]}?"]


def test_what_is_a_setting_or_like_none_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    known = [name for one in classes() for name in variables(one) if name.startswith("FEDBUS_")]
    # The last are of scripts and of compose.yaml.
    others = ["fedbus_replicas", "FEDBUS_INSTALL", "FEDBUS_JOIN_TOKEN", "FEDBUS_PAGE", "FEDBUSY_REPLICA"]
    assert warned(monkeypatch, *known, *others) == []


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_value_is_told_with_its_variable(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_environment()
    value, said = WRONG[name]
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as told:
        check_environment()
    assert told.value.message.startswith(said)
