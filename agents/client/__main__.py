"""``python -m agents.client``: one native client, until SIGTERM or SIGINT."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from pathlib import Path

from agents.client.address import Address
from agents.client.objects import ObjectCache, default_cache
from agents.client.runner import Client
from agents.client.settings import ClientSettings
from agents.client.trainer import EngineTrainer, SyntheticTrainer
from agents.runtime.crash_points import check_crash_points
from agents.runtime.settings import ProcessSettings, warn_of_misspelled
from agents.runtime.stopping import GONE_S, set_by_signals
from agents.runtime.tasks import until
from bus.errors import FedbusError
from bus.process.logs import configure

log = logging.getLogger(__name__)


async def run_client(
    gateway: Address, name: str, *, cache: Path, threads: int = 1, engine: str | None = None, synthetic: bool = False
) -> None:
    """Runs one client until a signal arrives.

    Raises:
        FedbusError: the gateway refuses it, or the engine of this name cannot be used.
    """
    stop = asyncio.Event()
    objects = ObjectCache(gateway, cache)
    try:
        trainer = SyntheticTrainer(objects) if synthetic else EngineTrainer(objects, engine=engine, threads=threads)
        log.info("trains with %s", trainer.engine)
        with set_by_signals(stop, gone_s=GONE_S):
            await until(stop, Client(gateway, name, trainer).run())
    finally:
        await objects.close()


def main() -> None:
    """Exits with 1 and one line when the gateway refuses this client or its engine cannot be used."""
    settings = ClientSettings()
    parser = argparse.ArgumentParser(description="A native client that trains for a fedbus gateway.")
    parser.add_argument("--gateway", default=settings.url)
    parser.add_argument("--token", default=settings.join_token.get_secret_value())
    parser.add_argument("--ca", type=Path, default=settings.ca, help="authority to trust (PEM)")
    # In containers process ids are alike: the host's name tells them apart.
    parser.add_argument("--name", default=f"{os.uname().nodename.split('.')[0][:20]}-native-{os.getpid()}")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--engine", help="name of the engine to train with; default: the best that can be used")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="folder that keeps fetched objects")
    parser.add_argument("--synthetic", action="store_true", help="train nothing, answer at once")
    arguments = parser.parse_args()
    configure(arguments.name, json=ProcessSettings().log_json)
    try:
        warn_of_misspelled(log.warning)
        check_crash_points()
        asyncio.run(
            run_client(
                Address(arguments.gateway, arguments.token, arguments.ca),
                arguments.name,
                cache=arguments.cache,
                threads=arguments.threads,
                engine=arguments.engine,
                synthetic=arguments.synthetic,
            )
        )
    except FedbusError as error:
        log.error("%s [%s] %s", error.message, error.code, error.hint)
        sys.exit(1)


if __name__ == "__main__":
    main()
