#!/usr/bin/env python3
"""Builds the images of compose.yaml with buildah and runs its services, for machines without a Docker engine.

``python docker/check.py [--python-base IMAGE] [--node-base IMAGE] [--profile native] [-- ARGUMENTS OF BUILDAH BUD]``

Each service runs as its user, without capabilities, in a chroot of its image (``--isolation chroot``) and with the
host's network: ports 4222, 8222 and 8700 have to be free. A small run has to complete although everything is stopped
and started again after its beginning, every health check has to pass while its service runs and to fail afterwards,
SIGTERM has to end each service in its grace period, and nothing may be written outside of volumes and tmpfs.

The broker is the nats-server of the fedbus image with the configuration of compose.yaml, because a chroot shows nothing
about the official image. What only an engine does is not seen here: networks, restarts, read-only mounts, init.
"""

from __future__ import annotations

import argparse
import os
import secrets
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from buildah import MARK, ROOT, CheckFailedError, Service, containers, make_logins, marked, written_outside

RUN = "container-check"
START = ("run", "start", "--name", RUN, "--users", "6", "--images", "5", "--rounds", "2", "--go")
LOOK = (("watch", RUN), ("verify", RUN), ("report", RUN, "-o", "/tmp/report"))
RUN_S = 300
HEALTHY_S = 60
ONCE = ("nats-volume", "streams")


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


def check(services: Mapping[str, Service], clients: Sequence[str]) -> None:
    """Runs the whole system twice on the same volumes: a run that the first one starts has to complete."""
    cli = services["cli"]
    agents = [name for name, service in services.items() if "healthcheck" in service.spec and name != "nats"]
    began = cli.scratch / "began"
    began.touch()
    start(services, [*agents, *clients])
    ask(cli, START)
    stop(services, [*reversed(clients), *reversed(agents), "nats"])
    start(services, [*agents, *clients])
    for arguments in LOOK:
        ask(cli, arguments)
    stop(services, [*reversed(clients), *reversed(agents), "nats"])
    for name in ["nats", *agents]:
        expect(not services[name].healthy(), f"{name} is healthy although it is gone")
    for name, service in services.items():
        expect(not (stray := written_outside(service, began)), f"{name} wrote {stray}")
    expect(not (left := marked(cli.environment[MARK])), f"processes {left} are left")


def start(services: Mapping[str, Service], names: Sequence[str]) -> None:
    """Starts the broker, the streams and what is named, each as soon as the one before is healthy or done."""
    for name in ["nats-volume", "nats", "streams", *names]:
        service = services[name]
        if name in ONCE:
            code, said = service.once([*service.spec["entrypoint"], *service.spec["command"]])
            expect(code == 0, f"{name} ended with {code}: {said}")
            continue
        service.start([*(["nats-server"] if name == "nats" else ["python", "-m"]), *service.spec["command"]])
        if "healthcheck" in service.spec:
            print(f"{name:15} healthy after {until_healthy(service):.1f} s", flush=True)
        _, said = service.once(["id", "-u"])
        expect(said.strip() == service.spec["user"].split(":")[0], f"{name} runs as user {said.strip()}")


def until_healthy(service: Service) -> float:
    """Waits for the health check and returns the seconds from the start of the wait."""
    began = time.monotonic()
    while not service.healthy():
        assert service.process is not None
        if service.process.poll() is not None or time.monotonic() - began > HEALTHY_S:
            raise CheckFailedError(f"{service.name} is not healthy:\n{service.log.read_text(errors='replace')[-2000:]}")
        time.sleep(0.2)
    return time.monotonic() - began


def ask(cli: Service, arguments: Sequence[str]) -> None:
    """Runs one command of the operator, and shows it."""
    code, said = cli.once([*cli.spec["entrypoint"], *arguments], timeout=RUN_S)
    print("\n".join(f"    {line.rstrip()}" for line in [f"$ fedbus {shlex.join(arguments)}", *said.splitlines()]))
    expect(code == 0, f"fedbus {arguments[0]} ended with {code}")


def stop(services: Mapping[str, Service], names: Sequence[str]) -> None:
    """Ends what is named, one after the other."""
    for name in names:
        code, took_s = services[name].stop()
        said = services[name].log.read_text(errors="replace")[-2000:]
        expect(code == 0, f"{name} ended with {code} after SIGTERM:\n{said}")
        print(f"{name:15} stopped after {took_s:.1f} s", flush=True)


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
    if os.geteuid() != 0:
        parser.error("only root can make these containers")
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
