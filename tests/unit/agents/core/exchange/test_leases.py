"""Who holds which task: leases that are granted, wait for their client, come back, and end."""

from __future__ import annotations

import pytest

from agents.core.exchange.leases import REMEMBERED, Lease, LeaseRecord, LeaseTable
from agents.words.events import TaskAssigned
from tests.builders import ANY_REF

LEASE_S = 30.0


def record(user: str = "u1", client: str = "c1", attempt: int = 1) -> LeaseRecord:
    task = TaskAssigned(run="r", round=1, user=user, shard=ANY_REF, labels=(1,), spec=ANY_REF, seed=0)
    return LeaseRecord(task=task, client=client, sequence=7, attempt=attempt)


def names(leases: list[Lease]) -> list[str]:
    return [lease.id for lease in leases]


@pytest.fixture
def table() -> LeaseTable:
    return LeaseTable(LEASE_S)


def test_a_lease_is_named_after_its_task_and_attempt(table: LeaseTable) -> None:
    assert table.grant(record(attempt=3)).id == "r.1.u1.3"


def test_a_task_has_a_second_lease_only_when_the_first_lapsed_and_never_a_third(table: LeaseTable) -> None:
    first = table.grant(record())
    with pytest.raises(ValueError, match="has a lease"):
        table.grant(record(client="c2", attempt=2))
    table.lapse(first)
    with pytest.raises(ValueError, match="has a lease"):
        table.grant(record(attempt=2))
    second = table.grant(record(client="c2", attempt=2))
    table.lapse(second)
    with pytest.raises(ValueError, match="has a lease"):
        table.grant(record(client="c3", attempt=3))
    table.end(first)
    assert table.grant(record(client="c3", attempt=3)).record.client == "c3"
    assert table.under("open") == 1
    table.lapse(second, lapsed=False)
    assert table.under("open") == 2
    for lease in list(table):
        table.end(lease)
    assert table.under("open") == 0


def test_a_lease_is_found_for_its_own_client_only(table: LeaseTable) -> None:
    lease = table.grant(record())
    assert table.get(lease.id, "c1") is lease
    assert table.get(lease.id, "c2") is None
    assert table.holders(("r", 1, "u1")) == [lease]


def test_a_lease_of_a_connected_client_does_not_expire(table: LeaseTable) -> None:
    table.grant(record())
    assert table.expired(1e12) == []


def test_a_lost_clients_lease_expires_at_the_end_of_its_time_and_not_before(table: LeaseTable) -> None:
    lease = table.grant(record())
    table.grant(record(user="u2", client="c2"))
    table.detach("c1", 100.0)
    assert table.expired(100.0 + LEASE_S - 0.001) == []
    assert names(table.expired(100.0 + LEASE_S)) == [lease.id]


def test_a_client_that_returns_has_the_leases_that_it_names_and_gives_up_the_others(table: LeaseTable) -> None:
    kept, other = table.grant(record()), table.grant(record(user="u2"))
    foreign = table.grant(record(user="u3", client="c2"))
    table.detach("c1", 0.0)
    resumed, given_up = table.resume("c1", [kept.id, foreign.id, "r.1.never.1"])
    assert (names(resumed), names(given_up)) == ([kept.id], [other.id])
    assert names(table.expired(1e12)) == [other.id]


def test_a_lease_whose_update_is_being_published_is_neither_expired_nor_given_up(table: LeaseTable) -> None:
    lease = table.grant(record())
    lease.committing = True
    table.detach("c1", 0.0)
    assert table.expired(1e12) == []
    assert table.resume("c1", []) == ([], [])


def test_a_lease_ends_once_and_how_is_told_to_its_own_client_only(table: LeaseTable) -> None:
    lease = table.grant(record())
    assert table.end(lease, "accepted") is True
    assert table.end(lease, "revoked") is False
    assert (len(table), table.get(lease.id, "c1")) == (0, None)
    assert table.outcome(lease.id, "c1") == ("accepted", lease.record)
    assert table.outcome(lease.id, "c2") is None


def test_a_lease_that_goes_back_to_the_pool_leaves_no_outcome(table: LeaseTable) -> None:
    lease = table.grant(record())
    table.end(lease)
    assert table.outcome(lease.id, "c1") is None


def test_only_the_latest_outcomes_are_remembered(table: LeaseTable) -> None:
    leases = [table.grant(record(user=f"u{number}")) for number in range(REMEMBERED + 1)]
    for lease in leases:
        table.end(lease, "revoked")
    assert table.outcome(leases[0].id, "c1") is None
    assert table.outcome(leases[1].id, "c1") is not None
