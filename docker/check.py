#!/usr/bin/env python3
"""Builds the images of compose.yaml with buildah and runs its services once, for machines without a Docker engine.

``python docker/check.py [--python-base IMAGE] [--node-base IMAGE] [--profile native] [-- ARGUMENTS OF BUILDAH BUD]``

Each service runs as its user in a chroot of its image (``--isolation chroot``), with the host's network: ports 4222,
8222 and 8700 have to be free. A small run has to complete, every health check has to pass while its service runs and to
fail afterwards, SIGTERM has to end each service in its grace period, and nothing may be written outside of volumes and
tmpfs. The broker is the nats-server of the fedbus image with the configuration of compose.yaml, because a chroot shows
nothing about the official image. What only an engine does is not seen here: networks, restarts, capabilities, init.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
RUN = "container-check"
RUN_S = 300
HEALTHY_S = 60
MARK = "FEDBUS_CONTAINER_CHECK"
ONCE = ("nats-volume", "streams")
VARIABLE = re.compile(r"\$\{(\w+)(?::[-?]([^}]*))?\}")


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
        user = ["--user", str(self.spec["user"])]
        return ["buildah", "run", "--isolation", "chroot", *user, *variables, *mounts, self.container, "--", *argv]

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


def interpolated(text: str, values: Mapping[str, str]) -> str:
    """``text`` with its ``${NAME}``, ``${NAME:-default}`` and ``${NAME:?message}`` replaced."""
    return VARIABLE.sub(lambda found: values.get(found[1]) or found[2] or "", text)


def buildah(*arguments: str) -> str:
    """Runs buildah and returns the last line of its output."""
    done = subprocess.run(["buildah", *arguments], check=True, stdout=subprocess.PIPE, text=True)
    return (done.stdout.strip().splitlines() or [""])[-1]


def build(services: Mapping[str, Any], options: argparse.Namespace) -> None:
    """Builds every image that the services name."""
    bases = {"PYTHON_BASE": options.python_base, "NODE_BASE": options.node_base}
    arguments = [part for name, base in bases.items() if base for part in ("--build-arg", f"{name}={base}")]
    arguments += ["--isolation", "chroot", "--layers", *options.bud, str(ROOT)]
    for target, tag in sorted(
        {(spec["build"]["target"], spec["image"]) for spec in services.values() if "build" in spec}
    ):
        print(f"building {tag}", flush=True)
        with (options.scratch / f"build-{target}.log").open("wb") as log:
            subprocess.run(
                ["buildah", "bud", "--target", target, "--tag", f"localhost/{tag}", *arguments],
                check=True,
                stdout=log,
                stderr=subprocess.STDOUT,
            )


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
                if (chosen := values.get(variable) if value is None else interpolated(str(value), values)) is not None:
                    environment[variable] = chosen
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


def argv_of(spec: Mapping[str, Any], image_entrypoint: Sequence[str]) -> list[str]:
    """What an engine runs for a service."""
    return [*spec.get("entrypoint", image_entrypoint), *spec.get("command", [])]


def until_healthy(service: Service) -> float:
    """Waits for the health check and returns the seconds from the start of the wait."""
    began = time.monotonic()
    while not service.healthy():
        assert service.process is not None
        if service.process.poll() is not None or time.monotonic() - began > HEALTHY_S:
            raise CheckFailedError(f"{service.name} is not healthy:\n{service.log.read_text(errors='replace')[-2000:]}")
        time.sleep(0.2)
    return time.monotonic() - began


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


def check(services: dict[str, Service], clients: Sequence[str]) -> None:
    """Runs the whole system once."""
    since = next(iter(services.values())).scratch / "pids"
    started = time.time()
    os.utime(since, (started, started))
    entrypoint = ["python", "-m"]
    agents = [name for name, service in services.items() if "healthcheck" in service.spec and name != "nats"]
    for name in ["nats-volume", "nats", "streams", *agents, *clients]:
        service = services[name]
        if name in ONCE:
            code, said = service.once(argv_of(service.spec, entrypoint))
            expect(code == 0, f"{name} ended with {code}: {said}")
            continue
        service.start(argv_of(service.spec, ["nats-server"] if name == "nats" else entrypoint))
        if "healthcheck" in service.spec:
            print(f"{name:15} healthy after {until_healthy(service):.1f} s", flush=True)
    for name in [*agents, *clients]:
        code, said = services[name].once(["id", "-u"])
        expect(said.strip() == services[name].spec["user"].split(":")[0], f"{name} runs as user {said.strip()}")
    cli = services["cli"]
    start = ["run", "start", "--name", RUN, "--users", "6", "--images", "5", "--rounds", "2", "--go"]
    for arguments in (start, ["watch", RUN], ["verify", RUN], ["report", RUN, "-o", "/tmp/report"]):
        code, said = cli.once([*cli.spec["entrypoint"], *arguments], timeout=RUN_S)
        print("\n".join(f"    {line.rstrip()}" for line in [f"$ fedbus {shlex.join(arguments)}", *said.splitlines()]))
        expect(code == 0, f"fedbus {arguments[0]} ended with {code}")
    for name in [*reversed(clients), *reversed(agents), "nats"]:
        service = services[name]
        code, took_s = service.stop()
        expect(code == 0, f"{name} ended with {code} after SIGTERM:\n{service.log.read_text(errors='replace')[-2000:]}")
        expect("healthcheck" not in service.spec or not service.healthy(), f"{name} is healthy although it is gone")
        expect(not (stray := written_outside(service, since)), f"{name} wrote {stray}")
        print(f"{name:15} stopped after {took_s:.1f} s", flush=True)
    left = marked(cli.environment[MARK])
    expect(not left, f"processes {left} are left")


def expect(holds: bool, otherwise: str) -> None:
    """Raises CheckFailedError when something does not hold."""
    if not holds:
        raise CheckFailedError(otherwise)


def main() -> None:
    """Exits with 1 and one line when something is wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--python-base", help="base image in place of the Dockerfile's, with Python 3.11 and pip")
    parser.add_argument("--node-base", help="base image in place of the Dockerfile's, with Node 20 and npm")
    parser.add_argument("--profile", action="append", choices=["native", "browser"], help="default: both")
    parser.add_argument("--no-build", action="store_true", help="take the images that are there")
    parser.add_argument("bud", nargs="*", help="further arguments of buildah bud, after --")
    options = parser.parse_args()
    services: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    clients = [f"{profile}-client" for profile in options.profile or ["native", "browser"]]
    wanted = {name: spec for name, spec in services.items() if not name.endswith("-client") or name in clients}
    values = {"FEDBUS_JOIN_TOKEN": secrets.token_hex(16)}
    options.scratch = Path(tempfile.mkdtemp(prefix="fedbus-containers-"))
    options.scratch.chmod(0o711)
    try:
        if not options.no_build:
            build(wanted, options)
        make_logins(options.scratch)
        with containers(wanted, options.scratch, values) as running:
            check(running, clients)
    except (CheckFailedError, subprocess.SubprocessError) as failure:
        print(f"{failure}\nlogs: {options.scratch}", file=sys.stderr)
        sys.exit(1)
    shutil.rmtree(options.scratch)
    print("The containers do what compose.yaml says.")


if __name__ == "__main__":
    main()
