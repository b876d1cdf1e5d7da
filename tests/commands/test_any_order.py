"""Parts of fedbus may be started in any order, on any port, and say what they wait for."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import shlex
import socket
from pathlib import Path

import pytest

from agents.runtime.connection import Surroundings, agreed_connection, read_connection
from agents.runtime.joining import joined
from bus.broker.server import EmbeddedServer, embedded_server
from bus.client import Bus
from tests.commands.conftest import Shell
from tests.conftest import wait_for


def broker_of(shell: Shell) -> str:
    known = read_connection(shell.folder / ".fedbus")
    assert known is not None
    return known.nats_url


@pytest.mark.usefixtures("usual_ports")
async def test_an_agent_waits_for_a_broker_that_comes_later_on_another_port(shell: Shell) -> None:
    agent = await shell.start("agent", "evaluator")
    await agent.says("no broker at nats://127.0.0.1:4222")
    broker = await shell.start("broker", "--nats-port", "0")
    await broker.says("NATS on")
    assert not broker_of(shell).endswith(":4222")
    await agent.says("connected; ready")
    assert await agent.stop() == 0


@pytest.mark.usefixtures("usual_ports")
async def test_a_client_waits_for_a_gateway_that_comes_later_on_another_port(shell: Shell) -> None:
    client = await shell.start("client", "--native", "1")
    await client.says("waiting for the gateway at http://127.0.0.1:8700")
    await (await shell.start("broker", "--nats-port", "0")).says("NATS on")
    gateway = await shell.start("agent", "gateway", FEDBUS_GATEWAY_PORT="0")
    await gateway.says("listening on")
    await client.says("connected to http://127.0.0.1:")
    (log,) = await wait_for(lambda: list((shell.folder / ".fedbus" / "logs").glob("*native-1.log")), within_s=30)
    await wait_for(lambda: "joined" in log.read_text(), within_s=30)
    await gateway.stop()
    await client.says("lost the gateway")
    port = broker_url_port((shell.folder / ".fedbus" / "gateway.url").read_text())
    await (await shell.start("agent", "gateway", FEDBUS_GATEWAY_PORT=port)).says("listening on")
    await client.says("again")
    assert await client.stop() == 0
    assert "joined" in log.read_text()


def broker_url_port(url: str) -> str:
    return url.strip().rsplit(":", 1)[1]


async def test_a_client_with_a_wrong_token_ends_and_says_why(shell: Shell) -> None:
    await (await shell.start("broker", "--nats-port", "0")).says("NATS on")
    await (await shell.start("agent", "gateway", FEDBUS_GATEWAY_PORT="0")).says("listening on")
    said = await shell.run("client", "--native", "1", "--token", "wrong", code=1)
    assert "refuses" in said
    assert "[gateway_refused]" in said


async def test_a_refused_login_is_tried_again_and_the_hint_names_fedbus_env(shell: Shell) -> None:
    await (await shell.start("broker", "--nats-port", "0")).says("NATS on")
    agent = await shell.start(
        "agent", "evaluator", NATS_URL=broker_of(shell), NATS_USER="evaluator", NATS_PASSWORD="wrong"
    )
    await agent.says("refuses the connection")
    assert "fedbus env" in agent.said
    assert agent.process.returncode is None
    assert await agent.stop() == 0


async def test_a_login_that_is_mended_meanwhile_lets_the_waiting_process_in(tmp_path: Path) -> None:
    passwords = agreed_connection(tmp_path).passwords
    async with embedded_server(tmp_path / "nats", passwords=passwords) as server:
        good = server.settings
        logins = iter([good.model_copy(update={"user": "nobody"}), good])
        said: list[str] = []
        async with joined(lambda: next(logins), name="test", say=said.append) as bus:
            assert bus.statistics().connected
    assert len(said) == 1
    assert "refuses" in said[0]


async def test_who_comes_before_the_streams_waits_for_them_and_logs_no_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    passwords = agreed_connection(tmp_path).passwords
    async with embedded_server(tmp_path / "nats", passwords=passwords) as server:
        assert isinstance(server, EmbeddedServer)

        async def works_for(role: str) -> bool:
            async with Bus.connect(server.settings_for(role), name=role, wait_s=10) as bus:
                return bus.statistics().connected

        early = asyncio.create_task(works_for("labeller"))
        await wait_for(lambda: "until the operator has made the streams" in caplog.text)
        assert await works_for("cli")
        assert await early
    assert [one.message for one in caplog.records if one.levelno >= logging.ERROR] == []


async def test_the_folders_login_is_used_for_the_folders_broker_alone(shell: Shell) -> None:
    await (await shell.start("broker", "--nats-port", "0")).says("NATS on")
    url = broker_of(shell)
    assert "no dead letters" in await shell.run("dlq", "list", NATS_URL=url)
    assert "no dead letters" in await shell.run("dlq", "list", NATS_URL=url.replace("127.0.0.1", "localhost"))
    assert "refuses" in await shell.run("dlq", "list", NATS_URL=url, NATS_USER="cli", NATS_PASSWORD="no", code=1)
    async with embedded_server(shell.folder / "other") as other:
        assert "refuses" in await shell.run("dlq", "list", NATS_URL=other.url, code=1)


async def test_env_invents_nothing_in_an_unrelated_folder(shell: Shell) -> None:
    for command in ("env", "page"):
        assert "no fedbus in this folder" in await shell.run(command, code=1)
    assert not (shell.folder / ".fedbus").exists()


async def test_env_prints_what_the_broker_takes(shell: Shell) -> None:
    await (await shell.start("broker", "--nats-port", "0")).says("NATS on")
    assert f"export NATS_URL={broker_of(shell)}" in await shell.run("env")


async def test_the_address_of_the_page_comes_with_a_word_when_nothing_listens_there(shell: Shell) -> None:
    agreed_connection(shell.folder / ".fedbus")
    port = free_port()
    address = f"http://127.0.0.1:{port}/#token={known_token(shell)}"
    (shell.folder / ".fedbus" / "gateway.url").write_text(f"http://127.0.0.1:{port}")
    printed, said = (await shell.run("page", code=1)).splitlines()
    assert printed == address
    assert said.startswith(f"fedbus: nothing listens at http://127.0.0.1:{port} now (fedbus up, or beside a running")
    assert said.endswith("[gateway_unreachable]")
    with socket.create_server(("127.0.0.1", port)):
        assert (await shell.run("page")).splitlines() == [address]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        return int(one.getsockname()[1])


def known_token(shell: Shell) -> str:
    known = read_connection(shell.folder / ".fedbus")
    assert known is not None
    return known.join_token


async def test_a_store_elsewhere_is_reached_by_the_command_that_the_broker_names(shell: Shell) -> None:
    broker = await shell.start("broker", "--store", "st", "--nats-port", "0")
    await broker.says('eval "$(fedbus env --store st)"')
    assert "find it by themselves" not in broker.said
    exported = re.findall(r"export (\w+)=(.*)", await shell.run("env", "--store", "st"))
    login = {name: shlex.split(value)[0] for name, value in exported}
    assert "no runs" in await shell.run("run", "list", **login)


def test_the_file_is_read_anew_at_each_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # One of its own: what is found in the folder goes into the environment.
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("NATS_", "FEDBUS_"))}
    monkeypatch.setattr(os, "environ", kept)
    around = Surroundings("gateway", tmp_path)
    assert around.look().url == "nats://127.0.0.1:4222"
    made = agreed_connection(tmp_path)
    for url in ("nats://127.0.0.1:5001", "nats://127.0.0.1:5002"):
        made.model_copy(update={"nats_url": url}).write(tmp_path)
        found = around.look()
        assert (found.url, found.user) == (url, "gateway")
        assert found.password is not None
        assert found.password.get_secret_value() == made.passwords["gateway"]
    assert json.loads((tmp_path / "connection.json").read_text())["nats_url"].endswith("5002")
