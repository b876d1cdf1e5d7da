"""An empty round: 100 users whose clients train nothing, so that only fedbus itself takes time."""

from __future__ import annotations

import argparse
import asyncio
from statistics import median

from agents.core.views.run import RunView
from benchmarks.common import report
from benchmarks.runs import synthetic_run


def main() -> None:
    """Prints the table and writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--users", type=int, default=100)
    parser.add_argument("--clients", type=int, default=2)
    arguments = parser.parse_args()
    events = asyncio.run(synthetic_run(arguments.clients, rounds=arguments.rounds, users=arguments.users))
    rounds = RunView.of(events).rounds.values()
    seconds = [one.seconds for one in rounds if one.seconds is not None]
    report(
        "empty_round",
        ours=median(seconds),
        reference=None,
        unit="seconds a round",
        goal="at most a millisecond a user",
        users=arguments.users,
        clients=arguments.clients,
        slowest=max(seconds),
        fastest=min(seconds),
    )


if __name__ == "__main__":
    main()
