"""compose.yaml names every agent, keeps no secret, and starts what exists. (No container is started here.)"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import yaml

from agents.cli.system import AGENTS

ROOT = Path(__file__).parents[3]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
CLIENTS = {"native-client", "browser-client"}


def test_the_broker_all_agents_and_the_clients_are_there() -> None:
    assert set(SERVICES) == {"nats", *AGENTS, *CLIENTS}


@pytest.mark.parametrize("name", sorted(set(SERVICES) - CLIENTS))
def test_every_agent_has_a_health_check_and_time_to_stop(name: str) -> None:
    assert SERVICES[name]["healthcheck"]["test"][0] == "CMD"
    assert SERVICES[name]["stop_grace_period"].endswith("s")


@pytest.mark.parametrize("name", sorted(set(SERVICES) - {"nats"}))
def test_every_command_is_a_module_that_exists(name: str) -> None:
    assert importlib.util.find_spec(SERVICES[name]["command"][0]) is not None


@pytest.mark.parametrize("name", sorted(CLIENTS))
def test_clients_run_only_when_their_profile_is_asked_for(name: str) -> None:
    assert SERVICES[name]["profiles"] == [name.removesuffix("-client")]


def test_no_secret_stands_in_the_file() -> None:
    for name, service in SERVICES.items():
        for variable, value in service.get("environment", {}).items():
            if any(word in variable for word in ("TOKEN", "KEY", "PASSWORD")):
                assert str(value).startswith("${"), (name, variable)


def test_the_image_does_not_run_as_root_and_compose_uses_its_stages() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    stages = [line.split(" AS ")[1] for line in lines if line.startswith("FROM")]
    assert {SERVICES[name]["build"]["target"] for name in SERVICES if name != "nats"} <= set(stages)
    assert [line for line in lines if line.startswith("USER ")][-1] == "USER fedbus"
