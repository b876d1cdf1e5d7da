"""Services of compose.yaml as processes in chroots of their images, by buildah."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MARK = "FEDBUS_CONTAINER_CHECK"
VARIABLE = re.compile(r"\$\{(\w+):\?[^}]*\}")


class CheckFailedError(Exception):
    """A service does not do what compose.yaml says of it."""


@dataclass
class Service:
    """A service of compose.yaml with the buildah container that stands for it."""

    name: str
    spec: Mapping[str, Any]
    container: str
    environment: dict[str, str]
    mounts: list[str]
    scratch: Path
    process: subprocess.Popen[bytes] | None = None
    log: Path = field(init=False)

    def __post_init__(self) -> None:
        self.log = self.scratch / f"{self.name}.log"

    def command(self, argv: Sequence[str]) -> list[str]:
        """The buildah command that runs ``argv`` in the container as the service's user."""
        variables = [part for pair in self.environment.items() for part in ("--env", "=".join(pair))]
        mounts = [part for mount in self.mounts for part in ("--volume", mount)]
        rights = ["--user", str(self.spec["user"])]
        if "cap_add" not in self.spec:  # buildah would drop those again.
            rights += [part for capability in self.spec["cap_drop"] for part in ("--cap-drop", capability)]
        return ["buildah", "run", "--isolation", "chroot", *rights, *variables, *mounts, self.container, "--", *argv]

    def start(self, argv: Sequence[str]) -> None:
        """Starts the service's process; its output goes to ``log``."""
        recorded = ["sh", "-c", f'echo $$ > /check/{self.name} && exec "$@"', "sh", *argv]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(self.command(recorded), stdout=log, stderr=subprocess.STDOUT)

    def once(self, argv: Sequence[str], *, timeout: float = 60) -> tuple[int, str]:
        """Runs ``argv`` beside the service and returns its exit code and what it said."""
        done = subprocess.run(self.command(argv), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=timeout)
        return done.returncode, done.stdout.decode(errors="replace")

    def healthy(self) -> bool:
        """Whether the health check of compose.yaml passes now."""
        test = self.spec["healthcheck"]["test"]
        if self.name == "nats":  # The image of the stand-in has no wget.
            with contextlib.suppress(OSError), urllib.request.urlopen(test[-1], timeout=5) as answer:
                return bool(answer.status == 200)
            return False
        return self.once(test[1:])[0] == 0

    def stop(self) -> tuple[int, float]:
        """Ends the service as an engine does and returns its exit code and the seconds that it took."""
        assert self.process is not None
        pid = int((self.scratch / "pids" / self.name).read_text())
        began = time.monotonic()
        os.kill(pid, signal.SIGTERM)
        grace_s = float(str(self.spec["stop_grace_period"]).removesuffix("s"))
        try:
            code = self.process.wait(grace_s)
        except subprocess.TimeoutExpired:
            os.kill(pid, signal.SIGKILL)
            raise CheckFailedError(f"{self.name} did not stop within {grace_s:.0f} s of SIGTERM") from None
        return code, time.monotonic() - began


def written_outside(service: Service, since: Path) -> list[str]:
    """Files that the service's user wrote where compose.yaml lets it write nothing."""
    mounted = Path(buildah("mount", service.container))
    try:
        uid = int(str(service.spec["user"]).split(":")[0])
        newer = ["-xdev", "-type", "f", "-uid", str(uid), "-newer", str(since)]
        listing = subprocess.run(["find", str(mounted), *newer], check=True, stdout=subprocess.PIPE, text=True)
        return [line.removeprefix(str(mounted)) for line in listing.stdout.splitlines()]
    finally:
        buildah("umount", service.container)


@contextlib.contextmanager
def containers(services: Mapping[str, Any], scratch: Path, values: Mapping[str, str]) -> Iterator[dict[str, Service]]:
    """A buildah container for each service, and at the end none of their processes."""
    (scratch / "pids").mkdir()
    (scratch / "pids").chmod(0o1777)
    hosts = [part for name in services for part in ("--add-host", f"{name}:127.0.0.1")]
    mark = secrets.token_hex(8)
    made: dict[str, Service] = {}
    try:
        for name, spec in services.items():
            image = spec["image"] if "build" in spec else "fedbus"
            container = buildah("from", "--isolation", "chroot", "--network", "host", *hosts, f"localhost/{image}")
            environment = {MARK: mark}
            if "env_file" in spec:
                lines = host_path(spec["env_file"], scratch).read_text().splitlines()
                environment |= dict(line.split("=", 1) for line in lines)
            for variable, value in spec.get("environment", {}).items():
                if value is not None:  # What has none is handed on when it is set, and here it is not.
                    environment[variable] = VARIABLE.sub(lambda found: values[found[1]], value)
            mounts = [f"{scratch / 'pids'}:/check", *_mounts(name, spec, scratch)]
            made[name] = Service(name, spec, container, environment, mounts, scratch)
        yield made
    finally:
        for pid in marked(mark):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for service in made.values():
            if service.process is not None:
                service.process.wait()
            buildah("rm", service.container)


def _mounts(name: str, spec: Mapping[str, Any], scratch: Path) -> Iterator[str]:
    """Folders of ``scratch`` in place of volumes (root's own, as new ones are without an image's) and of tmpfs."""
    for place in spec.get("tmpfs", []):
        folder = scratch / "tmpfs" / name / place.strip("/").replace("/", "-")
        folder.mkdir(parents=True)
        folder.chmod(0o1777)
        yield f"{folder}:{place}"
    for volume in spec.get("volumes", []):
        if isinstance(volume, dict):
            yield f"{host_path(volume['source'], scratch)}:{volume['target']}:ro"
            continue
        source, target = volume.split(":")
        folder = scratch / "volumes" / source
        if not folder.exists():
            folder.mkdir(parents=True)
            if target == "/var/lib/fedbus":  # A new volume takes over the owner of the image's folder.
                os.chown(folder, *map(int, spec["user"].split(":")))
        yield f"{folder}:{target}"


def host_path(path: str, scratch: Path) -> Path:
    """The file that compose.yaml means, made for this check if it is one of the logins."""
    name = path.removeprefix("./")
    return scratch / "logins" / Path(name).name if name.startswith(".fedbus/") else ROOT / name


def make_logins(scratch: Path) -> None:
    """Writes the logins as docs/operations.md says, as a user whom the image does not know."""
    logins = scratch / "logins"
    logins.mkdir(mode=0o700)
    os.chown(logins, 54321, 54321)
    container = buildah("from", "--isolation", "chroot", "localhost/fedbus")
    where = ["--isolation", "chroot", "--user", "54321:54321", "--volume", f"{logins}:/logins", container]
    try:
        buildah("run", *where, "--", "fedbus", "nats-config", "-o", "/logins")
    finally:
        buildah("rm", container)
    (logins / "authorization.conf").chmod(0o644)


def marked(mark: str) -> list[int]:
    """The processes that run with this mark in their environment."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if f"{MARK}={mark}".encode() in entry.read_bytes():
                found.append(int(entry.parent.name))
    return found


def buildah(*arguments: str) -> str:
    """Runs buildah and returns the last line of its output."""
    done = subprocess.run(["buildah", *arguments], check=True, stdout=subprocess.PIPE, text=True)
    return (done.stdout.strip().splitlines() or [""])[-1]
