"""Adding updates into the fixed-point sum, against numpy's own ``a += b`` on the same float32 arrays."""

from __future__ import annotations

import argparse
import resource
import time

import numpy as np

from agents.core.learning.fixed_point import FixedPointSum
from benchmarks.common import report


def measure(parameters: int, updates: int) -> tuple[float, float]:
    """Seconds for all additions, ours and numpy's; the two take turns so that both meet the same machine."""
    deltas = [np.random.default_rng(seed).normal(0, 0.01, parameters).astype(np.float32) for seed in range(2)]
    total, plain = FixedPointSum(parameters), np.zeros(parameters, np.float32)
    ours = theirs = 0.0
    for index in range(updates):
        delta = deltas[index % 2]
        began = time.perf_counter()
        total.add(delta, 20)
        between = time.perf_counter()
        plain += delta
        ours += between - began
        theirs += time.perf_counter() - between
    return ours, theirs


def main() -> None:
    """Prints the table and writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", default="aggregator")
    parser.add_argument("--parameters", type=int, default=10_000_000)
    parser.add_argument("--updates", type=int, default=100)
    arguments = parser.parse_args()
    parameters, updates = arguments.parameters, arguments.updates
    few, _ = measure(parameters, 2), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ours, theirs = measure(parameters, updates)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    gigabytes = parameters * updates * 4 / 1e9
    report(
        arguments.name,
        ours=gigabytes / ours,
        reference=gigabytes / theirs,
        unit="GB/s",
        goal="printed beside numpy's a += b; peak memory independent of the number of updates",
        parameters=parameters,
        updates=updates,
        seconds=round(ours, 3),
        peak_memory_growth_mb=round(grown / 1024, 1),
        peak_memory_mb=round((before + grown) / 1024, 1),
        warmup_seconds=round(few[0], 3),
    )


if __name__ == "__main__":
    main()
