"""How many clients of each kind a command runs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated

import typer

MAX_CLIENTS = 256


@dataclass(frozen=True)
class ClientMix:
    """How many clients of each kind train."""

    browser: int = 0
    native: int = 0

    def __str__(self) -> str:
        parts = [f"{kind}:{count}" for kind, count in (("browser", self.browser), ("native", self.native)) if count]
        return ",".join(parts) or "none"


def parse_clients(text: str) -> ClientMix:
    """The clients that ``browser:2``, ``native:2``, ``browser:1,native:1`` or ``none`` names.

    Raises:
        typer.BadParameter: it names something else, or more than ``MAX_CLIENTS``.
    """
    counts = {"browser": 0, "native": 0}
    if text == "none":
        return ClientMix()
    for part in text.split(","):
        found = re.fullmatch(r"(browser|native):(\d{1,4})", part.strip())
        if found is None:
            raise typer.BadParameter(f"{part!r} is not browser:N or native:N (several are joined by a comma)")
        counts[found[1]] += int(found[2])
    if not 0 < sum(counts.values()) <= MAX_CLIENTS:
        raise typer.BadParameter(f"1 to {MAX_CLIENTS} clients, not {sum(counts.values())}")
    return ClientMix(**counts)


Threads = Annotated[int, typer.Option("--threads", min=1, max=64, help="Threads of each client.")]
