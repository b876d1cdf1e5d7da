"""A round of the default task against a plain PyTorch loop that does the same work without any server."""

from __future__ import annotations

import argparse
from statistics import median

from benchmarks.common import report
from benchmarks.runs import demo_report, torch_seconds

GOALS = {"native:2": "at most 0.8 times the loop's time", "browser:2": "at most 2 times the loop's time"}


def main() -> None:
    """Prints one table for each kind of client and writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=4)
    rounds = parser.parse_args().rounds
    reference = torch_seconds(rounds)
    for clients, goal in GOALS.items():
        found = demo_report(clients, rounds=rounds)
        report(
            f"round_{clients.replace(':', '_')}",
            ours=median(one["seconds"] for one in found["rounds"]),
            reference=reference,
            unit="seconds a round",
            goal=goal,
            rounds=rounds,
            base_accuracy=found["base"]["accuracy"],
            final_accuracy=found["final"]["accuracy"],
        )


if __name__ == "__main__":
    main()
