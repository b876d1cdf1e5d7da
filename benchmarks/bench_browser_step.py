"""A training step (7 images) in the browser against a native one on the same artifacts, one thread each."""

from __future__ import annotations

import argparse
from typing import Any

from benchmarks.common import report
from benchmarks.runs import demo_report


def step_ms(found: dict[str, Any]) -> float:
    """Milliseconds of one step, augmentation included, as the clients measured it."""
    steps = sum(int(one["mismatched_images"]) for one in found["rounds"])
    return 1e3 * float(found["time"]["train"]) / steps


def main() -> None:
    """Prints the table and writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--users", type=int, default=50)
    arguments = parser.parse_args()
    browser, native = (
        demo_report(clients, rounds=arguments.rounds, users=arguments.users) for clients in ("browser:1", "native:1")
    )
    report(
        "browser_step",
        ours=step_ms(browser),
        reference=step_ms(native),
        unit="ms a step of 7 images",
        goal="at most 2.5 times the native step",
        users=arguments.users,
        rounds=arguments.rounds,
    )


if __name__ == "__main__":
    main()
