"""Training modes: which parameters of a Vision Transformer a run trains."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from artifacts.errors import TrainModeError

LORA_SCALE = 2.0
"""What LoRA's product B A counts: its alpha over its rank."""

_PATTERN = re.compile(r"^(?:(head|head-weight|full)|last-([1-9]\d{0,3})|lora:([1-9]\d{0,3}))$")


@dataclass(frozen=True)
class TrainMode:
    """A parsed mode; `size` is the number of last blocks, or the LoRA rank, and 0 otherwise."""

    kind: Literal["head", "head-weight", "last", "lora", "full"]
    size: int = 0

    def __str__(self) -> str:
        return {"last": f"last-{self.size}", "lora": f"lora:{self.size}"}.get(self.kind, self.kind)


def parse_mode(text: str) -> TrainMode:
    """Return the mode that "head", "head-weight", "last-K", "lora:R" or "full" names, or raise TrainModeError."""
    match = _PATTERN.match(text)
    if match is None:
        raise TrainModeError(
            f"unknown training mode {text!r}",
            hint="use head, head-weight, last-K, lora:R or full, such as last-1, lora:8",
        )
    plain, last, rank = match.groups()
    if last:
        return TrainMode("last", int(last))
    if rank:
        return TrainMode("lora", int(rank))
    return TrainMode(plain)  # type: ignore[arg-type]
