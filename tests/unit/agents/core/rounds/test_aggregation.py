"""A round's model: no update overflows it, and one that is larger than is usual counts scaled down."""

from __future__ import annotations

import contextlib
import errno
import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.core.learning.clipping import clip_factor, median_limit
from agents.core.learning.fixed_point import FixedPointSum
from agents.core.learning.magnitudes import value_bound
from agents.core.rounds.aggregation import RoundAggregation
from agents.core.strategies.strategy import StrategyBrokenError, StrategyFailedError, strategy_at_work
from agents.words.events import RoundClosed, RoundFailed
from agents.words.run_config import RunConfig
from bus.errors import FedbusError
from tests.builders import (
    BASE,
    BASE_REF,
    PARAMETERS,
    Stream,
    assigned,
    config,
    planned,
    publish,
    run_started,
    submitted,
)
from tests.faulty_strategy import FAULTS, NAME

HONEST = [np.float32([1, 0, 0, 0]), np.float32([0, 2, 0, 0]), np.float32([0, 0, 3, 0]), np.zeros(4, np.float32)]
HUGE = np.full(PARAMETERS, 1e3, np.float32)


class Round:
    """A round whose updates are in the stream; its bytes by user."""

    def __init__(self, run: RunConfig, deltas: Sequence[np.ndarray], weights: Sequence[int] | None = None) -> None:
        self.started, self.stream = run_started(run), Stream()
        self.objects = {BASE_REF.sha256: BASE.tobytes()}
        self.stream.add(planned(len(deltas), len(deltas)))
        for index in range(len(deltas)):
            self.stream.add(assigned(f"u{index}"))
        for index, delta in enumerate(deltas):
            weight = 2 if weights is None else weights[index]
            self.stream.add(submitted(f"u{index}", delta, examples=weight, objects=self.objects))

    def read(self) -> RoundAggregation:
        one = RoundAggregation(self.started, 1)
        for stored in self.stream.events:
            one.fold(stored)
        return one

    def add(self, one: RoundAggregation, order: Sequence[int] | None = None) -> int:
        wanted = one.wanted()
        for index in order or range(len(wanted)):
            one.add(wanted[index], self.objects[wanted[index].update.update.sha256])
        return len(wanted)

    def close(self, *readers: RoundAggregation) -> None:
        closed = self.read().decide(self.stream.now)
        assert isinstance(closed, RoundClosed)
        stored = self.stream.add(closed)
        for one in readers:
            one.fold(stored)

    def bits(self, one: RoundAggregation) -> bytes:
        made = one.made(BASE.tobytes(), None)
        return BASE.tobytes() if made is None else made.model.tobytes()


def clipping(multiple: float | None = 2.0, **changes: object) -> RunConfig:
    return config(users=5).model_copy(update={"clip_to_median": multiple, **changes})


@pytest.mark.parametrize("value", [1e30, 1.07e8, 2.0**31, 1024.001])
@pytest.mark.parametrize("strategy", ["fedavg", "fedadam", "median"])
def test_the_aggregator_refuses_a_huge_value_as_the_gateway_does(value: float, strategy: str) -> None:
    given = Round(clipping(None, strategy=strategy), [*HONEST, np.full(PARAMETERS, value, np.float32)])
    one = given.read()
    for candidate in one.wanted():
        data = given.objects[candidate.update.update.sha256]
        if candidate.update.user != "u4":
            one.add(candidate, data)
            continue
        with pytest.raises(FedbusError) as refused:
            one.add(candidate, data)
        assert one.refusal_of(candidate, refused.value).code == "magnitude"


@pytest.mark.parametrize("sign", [1, -1])
def test_a_whole_round_at_the_bound_makes_a_finite_model(sign: int) -> None:
    delta = np.full(PARAMETERS, sign * value_bound(20, 1000), np.float32)
    given = Round(clipping(None), [delta] * 20, [1000] * 20)
    one = given.read()
    given.add(one)
    given.close(one)
    made = one.made(BASE.tobytes(), None)
    assert made is not None
    np.testing.assert_array_equal(made.model, delta)


def test_the_limit_is_a_multiple_of_the_median_of_the_norms_that_are_not_zero() -> None:
    assert median_limit([3, 1, 0, 2, 0], 1.5) == 3.0
    assert median_limit([1, 2, 3, 4], 1.5) == 4.5
    assert median_limit([1, 2], 1.5) == 3.0
    assert median_limit([0, 0], 1.5) is None
    assert median_limit([], 1.5) is None


def test_a_round_of_one_or_two_clips_nobody() -> None:
    for norms in ([5.0], [0.1, 5.0]):
        assert all(clip_factor(norm, median_limit(norms, 1.0)) is None for norm in norms)


def test_a_huge_update_counts_scaled_down_to_twice_the_median_and_the_others_as_they_are() -> None:
    given = Round(clipping(), [*HONEST, HUGE])
    one = given.read()
    assert given.add(one) == 5
    given.close(one)
    assert (one.clip_norm, given.add(one), one.wanted()) == (6.0, 1, [])
    total, factor = FixedPointSum(PARAMETERS), clip_factor(2000.0, 6.0)
    for delta in (*HONEST, HUGE * factor):
        total.add(delta, 2)
    assert given.bits(one) == total.applied_to(BASE).tobytes()
    published = publish(one, given.objects)
    assert published.clip_norm == 6.0


@pytest.mark.parametrize("strategy", ["fedavg", "fedadam"])
def test_who_reads_the_round_before_or_after_its_end_and_in_whatever_order_makes_the_same_bits(strategy: str) -> None:
    given = Round(clipping(strategy=strategy), [*HONEST[:3], HUGE])
    early = given.read()
    given.add(early)
    given.close(early)
    given.add(early)
    late = []
    for order in itertools.permutations(range(4)):
        one = given.read()
        given.add(one, order)
        late.append(given.bits(one))
    assert set(late) == {given.bits(early)}


@settings(max_examples=50)
@given(
    st.lists(st.tuples(st.floats(0, 1000, width=32), st.integers(0, 20)), min_size=1, max_size=7),
    st.floats(0.5, 3),
    st.integers(0, 7),
)
def test_however_much_was_added_before_the_end_the_model_is_the_same(
    updates: list[tuple[float, int]], multiple: float, before: int
) -> None:
    deltas = [np.float32([value, 0, -value, 0]) for value, _ in updates]
    given = Round(clipping(multiple), deltas, [weight for _, weight in updates])
    early, late = given.read(), RoundAggregation(run_started(clipping(multiple)), 1)
    given.add(early, list(range(len(updates)))[:before] or None)
    given.close(early)
    for stored in given.stream.events:
        late.fold(stored)
    given.add(early)
    given.add(late)
    assert early.wanted() == late.wanted() == []
    assert given.bits(early) == given.bits(late)


def test_median_takes_its_updates_as_they_are() -> None:
    given = Round(clipping(strategy="median"), [*HONEST[:2], HUGE])
    one = given.read()
    given.add(one)
    given.close(one)
    assert (one.clip_norm, one.wanted()) == (None, [])
    assert publish(one, given.objects).clip_norm is None


def test_the_runs_own_norm_clips_first() -> None:
    given = Round(clipping(max_update_norm=2.0, over_norm="clip", multiple=0.75), [*HONEST[:3], HUGE])
    one = given.read()
    given.add(one)
    given.close(one)
    assert one.clip_norm == 1.5
    given.add(one)
    late = given.read()
    given.add(late)
    assert given.bits(one) == given.bits(late)


def test_a_run_that_clips_refuses_an_update_whose_norm_nobody_told() -> None:
    given = Round(clipping(), HONEST[:1])
    silent = submitted("u1", HONEST[1], objects=given.objects).model_copy(update={"norm": None})
    given.stream.add(assigned("u1"))
    given.stream.add(silent)
    one = given.read()
    told, untold = one.wanted()
    one.add(told, given.objects[told.update.update.sha256])
    with pytest.raises(FedbusError) as refused:
        one.add(untold, given.objects[untold.update.update.sha256])
    assert one.refusal_of(untold, refused.value).code == "norm"


def test_a_run_that_says_nothing_of_the_median_clips_nothing() -> None:
    given = Round(clipping(None), [*HONEST, HUGE])
    one = given.read()
    given.add(one)
    given.close(one)
    assert (one.clip_norm, one.wanted()) == (None, [])
    assert "clip_norm" not in publish(one, given.objects).model_dump_json()
    assert "clip_to_median" not in given.started.model_dump_json()


def faulty(fault: str, monkeypatch: pytest.MonkeyPatch) -> Round:
    monkeypatch.setenv("FEDBUS_STRATEGIES", NAME)
    run = config(users=2).model_copy(update={"strategy": NAME, "strategy_settings": {"fault": fault}})
    return Round(run, HONEST[:2])


def to_its_end(round_: Round, one: RoundAggregation) -> object:
    """What is decided of the round after its close, once whatever goes wrong went wrong."""
    with contextlib.suppress(StrategyBrokenError):
        round_.add(one)
    closed = one.decide(round_.stream.now)
    if not isinstance(closed, RoundClosed):
        return closed
    one.fold(round_.stream.add(closed))
    with contextlib.suppress(StrategyBrokenError):
        round_.add(one)
        one.made(BASE.tobytes(), None)
    return one.decide(round_.stream.now)


@pytest.mark.parametrize("fault", FAULTS)
def test_whatever_a_strategy_does_wrong_fails_its_round_with_a_code(
    fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    round_ = faulty(fault, monkeypatch)
    one = round_.read()
    failed = to_its_end(round_, one)
    assert isinstance(failed, RoundFailed)
    assert failed.code == ("strategy_result" if fault in ("nan", "inf", "shape", "state") else "strategy_failed")
    one.fold(round_.stream.add(failed))
    assert one.is_over
    assert one.decide(round_.stream.now) is None
    assert one.wanted() == []


def test_after_the_failure_no_model_counts_and_after_a_model_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    round_ = faulty("step", monkeypatch)
    failed = to_its_end(round_, round_.read())
    assert isinstance(failed, RoundFailed)
    published = round_.read().published(BASE_REF, None)
    for first, second in ((failed, published), (published, failed)):
        one = round_.read()
        for data in (failed.model_copy(update={"code": None}), first, second):
            one.fold(Stream(round_.stream.events.copy()).add(data))
        assert (one.state.failed, one.state.published) == ((failed, None) if first is failed else (None, published))


def test_a_machine_without_room_is_no_fault_of_the_strategy() -> None:
    with pytest.raises(OSError, match="full"), strategy_at_work("own", "step"):
        raise OSError(errno.ENOSPC, "full")
    with pytest.raises(StrategyFailedError), strategy_at_work("own", "step"):
        raise FileNotFoundError(errno.ENOENT, "its own file")
