"""The way of an update from a mapped file into the fixed-point sum, beside numpy's ``a += b`` over the same bytes."""

from __future__ import annotations

import argparse
import hashlib
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from agents.core.learning.decoding import clipped_parts, update_norm
from agents.core.learning.encodings import encode_update
from agents.core.learning.fixed_point import FixedPointSum
from agents.core.learning.magnitudes import LARGEST_VALUE
from benchmarks.common import report

WEIGHT = 20


@dataclass
class Times:
    """Seconds for all updates: of each step of the way, and of numpy's addition of the same values."""

    hashed: float = 0.0
    added: float = 0.0
    clipped: float = 0.0
    plain: float = 0.0


def measure(parameters: int, updates: int, encoding: str, folder: Path) -> Times:
    """Adds updates as they are and clipped to half their norm; all take turns, so that they meet the same machine."""
    files, deltas = [], []
    for seed in range(2):
        delta = np.random.default_rng(seed).normal(0, 0.01, parameters).astype(np.float32)
        path = folder / f"{seed}"
        path.write_bytes(encode_update(delta, encoding))
        files.append(np.memmap(path, np.uint8, "r"))
        deltas.append(files[-1].view("<f4") if encoding == "float32" else delta)
    half = update_norm(files[0], encoding, parameters) / 2
    total, limited, plain = FixedPointSum(parameters), FixedPointSum(parameters), np.zeros(parameters, np.float32)
    times = Times()
    for index in range(updates):
        data, delta = files[index % 2], deltas[index % 2]
        times.hashed += _seconds(hashlib.sha256, data.data)
        times.added += _seconds(_add, total, data, encoding, None)
        times.clipped += _seconds(_add, limited, data, encoding, half)
        times.plain += _seconds(np.add, plain, delta, plain)
    return times


def _add(total: FixedPointSum, data: NDArray[np.uint8], encoding: str, clip_norm: float | None) -> None:
    parts = clipped_parts(data, encoding, total.size, clip_norm, largest=LARGEST_VALUE, check=False)
    total.add_update(parts, WEIGHT)


def _seconds(action: Callable[..., object], *arguments: object) -> float:
    began = time.perf_counter()
    action(*arguments)
    return time.perf_counter() - began


def main() -> None:
    """Prints the table and writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", default="aggregator")
    parser.add_argument("--parameters", type=int, default=10_000_000)
    parser.add_argument("--updates", type=int, default=100)
    parser.add_argument("--encoding", default="float32")
    arguments = parser.parse_args()
    parameters, updates, encoding = arguments.parameters, arguments.updates, arguments.encoding
    with tempfile.TemporaryDirectory() as folder:
        measure(parameters, 2, encoding, Path(folder))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        times = measure(parameters, updates, encoding, Path(folder))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    gigabytes = parameters * updates * 4 / 1e9
    report(
        arguments.name,
        ours=gigabytes / times.added,
        reference=gigabytes / times.plain,
        unit="GB/s of float32 added, from a mapped file",
        goal="printed beside numpy's a += b; peak memory independent of the number of updates",
        clipped_gb_s=gigabytes / times.clipped,
        hashed_and_added_gb_s=gigabytes / (times.hashed + times.added),
        hashed_and_clipped_gb_s=gigabytes / (times.hashed + times.clipped),
        hash_share=times.hashed / (times.hashed + times.added),
        parameters=parameters,
        updates=updates,
        encoding=encoding,
        seconds=round(times.added, 3),
        peak_memory_growth_mb=round(grown / 1024, 1),
        peak_memory_mb=round((before + grown) / 1024, 1),
    )


if __name__ == "__main__":
    main()
