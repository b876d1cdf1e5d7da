"""How much of the default demo is neither prediction nor training: bus, gateway, uploads, aggregation, evaluation."""

from __future__ import annotations

import argparse

from benchmarks.common import report
from benchmarks.runs import demo_report


def main() -> None:
    """Prints the table and writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", default="browser:2")
    parser.add_argument("--rounds", type=int, default=10)
    arguments = parser.parse_args()
    found = demo_report(arguments.clients, rounds=arguments.rounds)
    wall = found["wall_seconds"]
    report(
        "overhead",
        ours=found["time"]["overhead_share"] * wall,
        reference=wall,
        unit="seconds of the demo's wall time",
        goal="below a quarter of it",
        clients=arguments.clients,
        predict_seconds=found["time"]["predict"],
        train_seconds=found["time"]["train"],
        evaluation_seconds=found["time"]["evaluation"],
        final_accuracy=found["final"]["accuracy"],
    )


if __name__ == "__main__":
    main()
