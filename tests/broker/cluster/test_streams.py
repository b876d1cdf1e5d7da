"""On how many brokers the streams lie."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from bus.broker.settings import BusSettings


@pytest.mark.parametrize(("said", "kept"), [("", None), ("1", 1), ("3", 3), ("5", 5)])
def test_the_environment_says_how_many_brokers_keep_a_stream(
    said: str, kept: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDBUS_REPLICAS", said)
    assert BusSettings().replicas == kept


@pytest.mark.parametrize("said", ["0", "2", "4", "6", "many"])
def test_another_number_of_replicas_is_refused(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDBUS_REPLICAS", said)
    with pytest.raises(ValidationError):
        BusSettings()
