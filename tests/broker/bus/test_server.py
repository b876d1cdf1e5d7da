import asyncio
import os
import signal
import socket
import stat
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from pydantic import SecretStr

from bus.broker.connection import REMIND_S
from bus.broker.server import EmbeddedServer, embedded_server, find_nats_server
from bus.broker.settings import BusSettings
from bus.client import Bus
from bus.errors import BrokerUnavailableError, PortTakenError, ServerStartError, StoreLockedError
from tests.broker.bus.conftest import failed
from tests.conftest import wait_for


async def test_a_store_that_is_in_use_is_refused_with_the_process_that_uses_it(tmp_path: Path) -> None:
    async with embedded_server(tmp_path):
        with pytest.raises(StoreLockedError, match=str(os.getpid())) as caught:
            await embedded_server(tmp_path).__aenter__()
    assert caught.value.hint
    async with embedded_server(tmp_path) as again:
        assert again.pid


async def test_a_taken_port_is_named_with_the_way_out(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(PortTakenError, match=str(port)) as caught:
            await embedded_server(tmp_path, port=port).__aenter__()
    assert "another port" in caught.value.hint


async def test_a_broker_that_cannot_start_is_an_error_with_the_end_of_its_log(tmp_path: Path) -> None:
    (tmp_path / "jetstream").write_text("a file where the broker wants a directory")
    with pytest.raises(ServerStartError, match=r"ended with code 1\n(.|\n)*not a directory"):
        await embedded_server(tmp_path).__aenter__()


async def test_token_and_events_survive_a_restart_and_secrets_are_private(tmp_path: Path, unique_run: str) -> None:
    async with embedded_server(tmp_path) as first, Bus.connect(first.settings, name="test", wait_s=10) as bus:
        await bus.publish(failed(unique_run))
    async with embedded_server(tmp_path) as second, Bus.connect(second.settings, name="test", wait_s=10) as bus:
        assert second.token == first.token
        assert not (await bus.publish(failed(unique_run))).created
    assert await second.wait() is not None
    for name in ("token", "nats-server.conf"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600


async def test_a_token_of_ones_own_is_used_whatever_its_characters(tmp_path: Path) -> None:
    token = 'with "quotes" and \\ # {braces}'
    async with (
        embedded_server(tmp_path, token=token) as server,
        Bus.connect(server.settings, name="test", wait_s=10) as bus,
    ):
        assert bus.statistics().connected


async def test_a_wrong_or_missing_token_is_refused_at_once_with_a_hint(tmp_path: Path) -> None:
    async with embedded_server(tmp_path) as server:
        for token in (None, SecretStr("wrong")):
            with pytest.raises(BrokerUnavailableError, match="refuses") as caught:
                async with asyncio.timeout(15), Bus.connect(BusSettings(url=server.url, token=token), name="test"):
                    pass
            assert "NATS_TOKEN" in caught.value.hint


async def test_the_broker_dies_when_its_parent_is_killed(tmp_path: Path) -> None:
    script = f"""
import asyncio, pathlib
from bus.broker.server import embedded_server
async def main():
    async with embedded_server(pathlib.Path({str(tmp_path)!r})) as server:
        print(server.pid, flush=True)
        await asyncio.Event().wait()
asyncio.run(main())
"""
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    broker = int(await asyncio.wait_for(parent.stdout.readline(), 20))
    os.kill(broker, 0)
    parent.kill()
    await parent.wait()
    # The store is free as soon as both are gone.
    async with asyncio.timeout(10):
        await wait_for(lambda: not _is_alive(broker))
    async with embedded_server(tmp_path):
        pass


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def test_whoever_waits_for_the_broker_hears_so_at_first_and_is_connected_when_it_comes(tmp_path: Path) -> None:
    async with embedded_server(tmp_path) as gone:
        pass
    told: list[str] = []
    connecting = Bus.connect(gone.settings, name="test", on_waiting=told.append)
    entering = asyncio.ensure_future(connecting.__aenter__())
    await wait_for(lambda: bool(told), within_s=REMIND_S / 2)
    assert str(gone.port) in told[0]
    async with embedded_server(tmp_path, port=gone.port):
        bus = await asyncio.wait_for(entering, 10)
        assert bus.statistics().connected
        await connecting.__aexit__(None, None, None)


async def test_waiting_for_the_broker_can_be_bounded_and_cancelled(tmp_path: Path) -> None:
    async with embedded_server(tmp_path) as gone:
        pass
    with pytest.raises(BrokerUnavailableError, match=r"within 0\.3 s") as caught:
        await Bus.connect(gone.settings, name="test", wait_s=0.3).__aenter__()
    assert "NATS_URL" in caught.value.hint
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await Bus.connect(gone.settings, name="test").__aenter__()


async def test_a_tls_broker_is_reached_with_its_authority_and_refused_without(authority: Path, tmp_path: Path) -> None:
    config = tmp_path / "nats.conf"
    config.write_text(
        f"""listen: "127.0.0.1:-1"
ports_file_dir: "{tmp_path}"
jetstream {{ store_dir: "{tmp_path}" }}
tls {{
  cert_file: "{authority}/cert.pem"
  key_file: "{authority}/key.pem"
  ca_file: "{authority}/ca.pem"
  verify: true
}}
"""
    )
    broker = await asyncio.create_subprocess_exec(
        find_nats_server(), "-c", str(config), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        ports = await wait_for(lambda: list(tmp_path.glob("*.ports")))
        port = (await wait_for(lambda: ports[0].read_text())).split(":")[-1].split('"')[0]
        files = {"ca": authority / "ca.pem", "cert": authority / "cert.pem", "key": authority / "key.pem"}
        settings = BusSettings.model_validate({"url": f"nats://127.0.0.1:{port}", **files})
        async with Bus.connect(settings, name="test", wait_s=10) as bus:
            assert await bus.last_sequence() == 0
        for missing in ("ca", "cert"):
            partial = settings.model_copy(update={missing: None})
            with pytest.raises(BrokerUnavailableError) as caught:
                await Bus.connect(partial, name="test", wait_s=5).__aenter__()
            assert "NATS_C" in caught.value.hint
        wrong = settings.model_copy(update={"ca": tmp_path / "nowhere.pem"})
        with pytest.raises(BrokerUnavailableError, match="TLS files"):
            await Bus.connect(wrong, name="test", wait_s=5).__aenter__()
    finally:
        broker.send_signal(signal.SIGTERM)
        await broker.wait()


def test_settings_come_from_the_environment_and_hide_their_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NATS_URL", "nats://broker:4222")
    monkeypatch.setenv("NATS_TOKEN", "s3cret")
    monkeypatch.setenv("NATS_USER", "")
    settings = BusSettings()
    assert settings.url == "nats://broker:4222"
    assert settings.user is None
    assert settings.token is not None
    assert settings.token.get_secret_value() == "s3cret"
    assert "s3cret" not in repr(settings)


async def test_a_cancellation_is_not_lost_when_the_answer_comes_at_the_same_time(nats: EmbeddedServer) -> None:
    async with Bus.connect(nats.settings, name="test", wait_s=10) as bus:
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        # So do the requests of nats-py wait for their answers.
        task = asyncio.ensure_future(bus.connection.persist(lambda: asyncio.wait_for(answer, 10)))
        await asyncio.sleep(0)
        # The answer is there, and before its reader wakes up it is told to stop.
        answer.add_done_callback(partial(_cancel, task))
        answer.set_result(1)
        with pytest.raises(asyncio.CancelledError):
            await task


def _cancel(task: asyncio.Future[int], _: object) -> None:
    task.cancel()
