from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.core.exchange import access
from agents.core.exchange.access import (
    BURST_S,
    JOIN,
    OPEN,
    ROLES,
    AccessRefusedError,
    AccessTable,
    Failures,
    Grant,
    Pace,
)
from bus.words.tokens import Role, TokenLimits, TokenRecord, digest_of, id_of, new_token

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def table(*records: TokenRecord, join_token: str = "", open_without: bool = False) -> AccessTable:
    made = AccessTable(join_token, open_without=open_without)
    made.update(records, NOW)
    return made


def refusal(of: AccessTable, token: str, role: Role = "watch", now: datetime = NOW) -> str:
    with pytest.raises(AccessRefusedError) as caught:
        of.check(token, role, now)
    return caught.value.code


def test_a_record_holds_nothing_of_the_secret() -> None:
    token, record = new_token("train", note="lab")
    assert id_of(token) == record.id
    secret = token.split("_", 2)[2]
    assert len(secret) >= 43
    assert secret not in record.model_dump_json()
    assert record.sha256 == digest_of(token)


@pytest.mark.parametrize("held", ROLES)
@pytest.mark.parametrize("needed", ROLES)
def test_a_role_may_do_what_the_lesser_ones_may(held: Role, needed: Role) -> None:
    token, record = new_token(held)
    if ROLES.index(held) >= ROLES.index(needed):
        assert table(record).check(token, needed, NOW).role == held
    else:
        assert refusal(table(record), token, needed) == "role"


@pytest.mark.parametrize("change", ["", "x", "fb_", "fb__", "fb_000000000000_x"])
def test_what_is_no_token_is_refused(change: str) -> None:
    assert refusal(table(new_token("admin")[1]), change) == "token"


@given(st.integers(0, 60), st.characters(codec="ascii"))
def test_one_other_character_makes_it_worthless(at: int, instead: str) -> None:
    token, record = new_token("admin")
    forged = token[:at] + instead + token[at + 1 :]
    if forged != token:
        assert refusal(table(record), forged) == "token"


def test_it_expires_at_the_second_and_not_before() -> None:
    token, record = new_token("train", expires=NOW + timedelta(seconds=10))
    known = table(record)
    assert known.check(token, "train", NOW + timedelta(seconds=9.999)).name == record.id
    assert refusal(known, token, "train", NOW + timedelta(seconds=10)) == "token"


def test_a_token_that_ends_is_told_to_those_who_hold_it_and_to_no_others() -> None:
    (one, first), (two, second) = new_token("train"), new_token("train", expires=NOW + timedelta(seconds=5))
    known, told = table(first, second), list[str]()
    known.check(one, "train", NOW).on_end.add(lambda reason: told.append(f"first: {reason}"))
    with known.check(two, "train", NOW).ending(lambda reason: told.append(f"second: {reason}")):
        known.expire(NOW + timedelta(seconds=4.9))
        assert told == []
        known.expire(NOW + timedelta(seconds=5))
        assert told == ["second: the token has expired"]
    known.update([first.model_copy(update={"revoked": NOW}), second], NOW)
    assert told[1:] == ["first: the token is revoked"]
    assert refusal(known, one) == "token"


def test_a_token_whose_record_is_gone_ends_too() -> None:
    token, record = new_token("train")
    known, told = table(record), list[str]()
    known.check(token, "train", NOW).on_end.add(told.append)
    known.update([], NOW)
    assert told == ["the token is gone"]


def test_all_its_holders_share_one_grant_that_is_full_at_its_limit() -> None:
    token, record = new_token("train", limits=TokenLimits(clients=2))
    known = table(record)
    grants = [known.check(token, "train", NOW) for _ in range(3)]
    grants[0].enter()
    grants[1].enter()
    with pytest.raises(AccessRefusedError) as caught:
        grants[2].enter()
    assert caught.value.code == "token_full"
    grants[0].leave()
    grants[2].enter()


def test_the_join_token_trains_and_is_no_admin() -> None:
    known = table(join_token="secret")
    assert known.check("secret", "train", NOW).name == JOIN
    assert refusal(known, "secret", "admin") == "role"
    assert refusal(known, "Secret") == "token"
    assert refusal(known, "") == "token"


def test_without_any_token_it_is_open_only_where_that_is_allowed() -> None:
    assert refusal(table(), "") == "token"
    assert table(open_without=True).check("", "admin", NOW).name == OPEN
    assert refusal(table(join_token="secret", open_without=True), "") == "token"


def test_the_first_token_closes_an_open_gateway_even_when_it_is_revoked() -> None:
    known, told = table(open_without=True), list[str]()
    known.check("", "train", NOW).on_end.add(told.append)
    _, record = new_token("watch")
    known.update([record.model_copy(update={"revoked": NOW})], NOW)
    assert told == ["a token is needed now"]
    assert not known.is_open
    assert refusal(known, "") == "token"


def test_a_pace_lets_a_burst_pass_and_then_only_its_rate() -> None:
    pace = Pace(10.0)
    assert [pace.delay(1, 0.0) for _ in range(int(10 * BURST_S))] == pytest.approx([0.0] * int(10 * BURST_S))
    assert pace.delay(1, 0.0) == pytest.approx(0.1)
    assert pace.delay(1, 0.1) == pytest.approx(0.1)
    assert pace.delay(5, 100.0) == 0.0


@given(st.lists(st.floats(0.1, 50), min_size=1, max_size=60), st.floats(1, 100))
def test_who_waits_as_told_never_takes_more_than_the_rate_and_a_burst(costs: list[float], rate: float) -> None:
    pace, now, taken = Pace(rate), 1.0, 0.0
    for cost in costs:
        taken += cost
        now += pace.delay(cost, now)
        assert taken <= rate * (now - 1.0 + BURST_S) * (1 + 1e-9)


def test_without_a_rate_nobody_waits() -> None:
    assert Pace(None).delay(1e15, 0.0) == 0.0


def test_an_address_stays_away_once_it_has_failed_too_often_and_may_come_back_after_the_minute() -> None:
    failures = Failures(3)
    for second in (0.0, 1.0):
        failures.count("a", second)
    assert failures.wait_s("a", 1.0) == 0.0
    failures.count("a", 2.0)
    assert failures.wait_s("a", 2.0) == 58.0
    assert failures.wait_s("b", 2.0) == 0.0
    assert failures.wait_s("a", 60.0) == 0.0
    failures.count("a", 60.0)
    assert failures.wait_s("a", 60.0) == 0.0


def test_only_so_many_addresses_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "FAILURES_REMEMBERED", 3)
    failures = Failures(1)
    for address in "abcd":
        failures.count(address, 0.0)
    assert [failures.wait_s(address, 0.0) > 0 for address in "abcd"] == [False, True, True, True]


def test_a_grant_counts_its_clients() -> None:
    grant = Grant("x", "train")
    for _ in range(5):
        grant.enter()
    assert grant.clients == 5
