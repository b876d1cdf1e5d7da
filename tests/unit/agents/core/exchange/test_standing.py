"""What a client and a token may hold after faults, and who has refused a task."""

from __future__ import annotations

from math import inf

from agents.core.exchange.messages import MAX_SLOTS
from agents.core.exchange.refusals import ENOUGH, FIRST_S, LONGEST_S, NEXT_S, Refusals
from agents.core.exchange.standing import TOLERANCE, Standing

KEY = ("run", 1, "u0")


def test_each_fault_halves_what_a_client_may_hold_down_to_one_and_each_update_gives_it_back() -> None:
    standing = Standing(64)
    held = []
    for _ in range(5):
        held.append(standing.of_client("bad"))
        standing.fault("bad", "token")
    assert held == [8, 4, 2, 1, 1]
    assert standing.of_client("good") == MAX_SLOTS
    for _ in range(3):
        standing.credit("bad", "token", 7.0)
    assert standing.of_client("bad") == 2
    assert (standing.worked_at("bad"), standing.worked_at("good")) == (7.0, -inf)


def test_new_names_do_not_help_a_token_whose_clients_fail() -> None:
    standing = Standing(64)
    for number in range(TOLERANCE - 1):
        standing.fault(f"name{number}", "token")
    assert standing.of_token("token") == 64
    standing.fault("another", "token")
    assert (standing.of_token("token"), standing.of_token("others")) == (32, 64)
    for number in range(1_000):
        standing.fault(f"later{number}", "token")
    assert standing.of_token("token") == MAX_SLOTS


def test_a_task_rests_longer_each_time_until_nobody_is_left_to_ask() -> None:
    refusals = Refusals()
    rests = [refusals.refuse(KEY, "one", {"one"}, 0.0) for _ in range(ENOUGH)]
    assert rests == [FIRST_S, 2 * FIRST_S, 4 * FIRST_S, 8 * FIRST_S, None]
    assert max(rest for rest in rests if rest is not None) <= LONGEST_S


def test_who_refuses_under_many_names_takes_no_task_from_a_client_that_has_not_refused_it() -> None:
    refusals = Refusals()
    for number in range(100):
        assert refusals.refuse(KEY, f"name{number}", {f"name{number}", "honest"}, 0.0) == NEXT_S
    assert refusals.refuse(KEY, "honest", {"honest"}, 0.0) is None
    assert refusals.by(KEY, "honest")
    refusals.forget(KEY)
    assert not refusals.by(KEY, "honest")
