"""How long a task may take: a share of the deadline at first, then what others took, within bounds."""

from __future__ import annotations

import pytest

from agents.core.exchange.task_times import (
    BACKUP_FACTOR,
    FACTOR,
    FIRST_BACKUP_S,
    KNOWN,
    LEAST_BACKUP_S,
    LEAST_S,
    TaskTimes,
)


@pytest.fixture
def times() -> TaskTimes:
    return TaskTimes()


def test_until_enough_are_done_a_task_has_a_quarter_of_the_deadline(times: TaskTimes) -> None:
    for _ in range(KNOWN - 1):
        times.learn("run", 3.0)
    assert times.allowed_s("run", 300.0) == 75.0
    times.learn("run", 3.0)
    assert times.allowed_s("run", 300.0) == 3.0 * FACTOR
    assert times.allowed_s("another", 300.0) == 75.0


@pytest.mark.parametrize(("took", "allowed"), [(0.001, LEAST_S), (20.0, 80.0), (1e6, 150.0)])
def test_what_is_learned_has_a_floor_and_a_ceiling(times: TaskTimes, took: float, allowed: float) -> None:
    for _ in range(KNOWN):
        times.learn("run", took)
    assert times.allowed_s("run", 300.0) == allowed


def test_one_in_ten_that_takes_for_ever_changes_nothing(times: TaskTimes) -> None:
    for took in [*[3.0] * 19, 1e6]:
        times.learn("run", took)
    assert times.allowed_s("run", 300.0) == 3.0 * FACTOR


def test_a_backup_comes_after_some_seconds_at_first_and_a_multiple_of_the_median_once_any_is_known(
    times: TaskTimes,
) -> None:
    assert times.backup_s("run", 300.0) == FIRST_BACKUP_S
    for took in (10.0, 1e6, 20.0):
        times.learn("run", took)
    assert times.backup_s("run", 300.0) == 20.0 * BACKUP_FACTOR
    assert times.backup_s("run", 100.0) == 100.0 / 4
    assert times.backup_s("another", 300.0) == FIRST_BACKUP_S
    for _ in range(KNOWN):
        times.learn("run", 0.001)
    assert times.backup_s("run", 300.0) == LEAST_BACKUP_S
