"""SIGKILL at every crash point: the run completes, with the model of an undisturbed run and a clean ledger."""

from __future__ import annotations

from itertools import zip_longest
from pathlib import Path

import pytest

from agents.core.strategies.registry import built_in
from agents.runtime.crash_points import AGGREGATOR, CLIENT, DISPATCHER, EVALUATOR, GATEWAY, LABELLER, POINTS
from tests.chaos.conftest import Survived, Undisturbed
from tests.chaos.disturbances import kill_broker_at
from tests.chaos.system import Outcome, complete, small

# Each run crashes at one point of every kind of process: points of different processes do not get in each other's way.
KINDS = (LABELLER, DISPATCHER, AGGREGATOR, EVALUATOR, GATEWAY, CLIENT)
BATCHES = [[point for point in batch if point] for batch in zip_longest(*KINDS)]
REPRESENTATIVE = ["dispatcher.round.planned", "aggregator.round.closed", "gateway.submitted", "client.chunk_sent"]


def test_every_crash_point_is_in_the_matrix() -> None:
    # Those of the bus: below for the publisher; tests/broker/bus/test_retries.py kills workers at theirs.
    assert sorted(point for batch in BATCHES for point in batch) == sorted(POINTS)


def check(outcome: Outcome, reference: Outcome, points: list[str]) -> None:
    assert outcome.status == "completed"
    assert outcome.crashed == set(points)
    assert sum(outcome.restarts.values()) == len(points)
    assert outcome.models == reference.models
    assert outcome.verdict.problems == []


@pytest.mark.chaos
@pytest.mark.timeout(240)
@pytest.mark.parametrize("points", BATCHES, ids=lambda points: points[-1].split(".", 1)[1])
async def test_a_crash_at_any_point_changes_nothing(
    points: list[str], undisturbed: Outcome, survived: list[Survived], tmp_path: Path
) -> None:
    outcome = await complete(tmp_path / "system", crash_at=points)
    check(outcome, undisturbed, points)
    survived += [Survived(point, outcome) for point in points]


@pytest.mark.chaos
@pytest.mark.timeout(240)
@pytest.mark.parametrize("point", AGGREGATOR)
@pytest.mark.parametrize("strategy", [name for name in built_in() if name != "fedavg"])
async def test_a_crash_of_the_aggregator_changes_nothing_with_any_strategy(
    strategy: str, point: str, undisturbed_with: Undisturbed, survived: list[Survived], tmp_path: Path
) -> None:
    reference = await undisturbed_with(strategy)
    # What comes by once a round is hit in the second, which goes on from what the server kept in the first.
    again = ":2" if point not in ("aggregator.received", "aggregator.added") else ""
    outcome = await complete(tmp_path / "system", config=small(strategy=strategy), crash_at=[point + again])
    check(outcome, reference, [point])
    survived.append(Survived(f"{point} with {strategy}", outcome))


@pytest.mark.chaos
@pytest.mark.timeout(240)
async def test_the_strategies_make_different_models(undisturbed_with: Undisturbed) -> None:
    models = [(await undisturbed_with(strategy)).model for strategy in built_in()]
    assert len(set(models)) == len(models)


@pytest.mark.timeout(240)
async def test_crashes_of_four_processes_and_the_broker_change_nothing(
    undisturbed: Outcome, survived: list[Survived], tmp_path: Path
) -> None:
    killed = kill_broker_at("task.assigned")
    outcome = await complete(tmp_path / "system", crash_at=REPRESENTATIVE, disturb=killed)
    check(outcome, undisturbed, REPRESENTATIVE)
    survived.append(Survived(f"{', '.join(REPRESENTATIVE)} and the broker at once", outcome))


@pytest.mark.chaos
@pytest.mark.timeout(240)
async def test_a_crash_between_two_windows_of_one_publication_changes_nothing(
    survived: list[Survived], tmp_path: Path
) -> None:
    # More users than the publisher writes at once, so that some tasks are assigned and some are not.
    config = small(users=300, images=1, rounds=1)
    reference = await complete(tmp_path / "reference", config=config)
    points = ["publisher.between_windows:1"]
    outcome = await complete(tmp_path / "system", config=config, crash_at=points)
    check(outcome, reference, ["publisher.between_windows"])
    survived.append(Survived("publisher.between_windows", outcome))
