"""On how many brokers the streams lie."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from agents.cli.system import running_system
from bus.broker.settings import BusSettings
from bus.broker.topology import STREAMS
from bus.client import Bus


@pytest.mark.timeout(120)
async def test_three_embedded_brokers_keep_every_stream_on_each(tmp_path: Path) -> None:
    async with (
        running_system(tmp_path / "store", tmp_path / "logs", nats_port=None, gateway_port=0, cluster=3) as system,
        Bus.connect(system.connection.settings(), name="test", wait_s=20) as bus,
    ):
        assert len(system.connection.settings().servers) == 3
        for stream in STREAMS:
            info = await bus.connection.persist(lambda name=stream.name: bus.connection.js.stream_info(name))  # type: ignore[misc]
            assert info.config.num_replicas == 3


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
