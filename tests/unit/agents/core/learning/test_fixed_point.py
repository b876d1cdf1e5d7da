"""Fixed-point averaging: any order and grouping, the same bits."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from agents.core.learning.fixed_point import (
    MAX_WEIGHT,
    AggregationOverflowError,
    FixedPointSum,
    NonFiniteUpdateError,
    UpdateShapeError,
    inputs_digest,
    largest_magnitude,
)

DELTAS = arrays(np.float32, 5, elements=st.floats(-100, 100, width=32))
UPDATES = st.lists(st.tuples(DELTAS, st.integers(0, 1000)), min_size=1, max_size=6)


def total(updates: list[tuple[np.ndarray, int]]) -> FixedPointSum:
    one = FixedPointSum(5)
    for delta, weight in updates:
        one.add(delta, weight)
    return one


@given(UPDATES, st.randoms())
def test_any_order_gives_the_same_bits(updates, random) -> None:
    parent = np.linspace(-1, 1, 5, dtype=np.float32)
    shuffled = list(updates)
    random.shuffle(shuffled)
    assert total(updates).applied_to(parent).tobytes() == total(shuffled).applied_to(parent).tobytes()


@given(UPDATES, st.integers(0, 6))
def test_partial_sums_merge_to_the_same_bits(updates, cut) -> None:
    parent = np.zeros(5, np.float32)
    merged = total(updates[:cut])
    merged.merge(total(updates[cut:]))
    assert merged.applied_to(parent).tobytes() == total(updates).applied_to(parent).tobytes()


@given(UPDATES, DELTAS, st.integers(0, 1000))
def test_taking_an_update_out_leaves_no_trace(updates, delta, weight) -> None:
    one = total(updates)
    one.add(delta, weight)
    one.remove(delta, weight)
    parent = np.zeros(5, np.float32)
    assert one.applied_to(parent).tobytes() == total(updates).applied_to(parent).tobytes()


@given(UPDATES)
def test_the_mean_is_the_weighted_mean(updates) -> None:
    weights = np.array([weight for _, weight in updates], np.float64)
    if weights.sum() == 0:
        return
    expected = np.average([delta.astype(np.float64) for delta, _ in updates], axis=0, weights=weights)
    np.testing.assert_allclose(total(updates).applied_to(np.zeros(5, np.float32)), expected, rtol=1e-6, atol=1e-9)


def test_a_round_without_weight_leaves_the_parent() -> None:
    parent = np.array([1, 2, 3, 4, 5], np.float32)
    assert (total([(np.ones(5, np.float32), 0)]).applied_to(parent) == parent).all()


def test_blocks_do_not_show_in_the_result() -> None:
    size = 3 * 2**15 + 7
    delta = np.random.default_rng(0).normal(size=size).astype(np.float32)
    one = FixedPointSum(size)
    one.add(delta, 3)
    np.testing.assert_allclose(one.applied_to(np.zeros(size, np.float32)), delta, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_refused_and_nothing_is_added(bad: float) -> None:
    one = total([(np.ones(5, np.float32), 1)])
    delta = np.ones(5, np.float32)
    delta[3] = bad
    with pytest.raises(NonFiniteUpdateError):
        one.add(delta, 1)
    assert (one.updates, one.weight) == (1, 1)
    assert (one.applied_to(np.zeros(5, np.float32)) == 1).all()


def test_an_update_of_another_shape_or_type_is_refused() -> None:
    one = FixedPointSum(5)
    for bad in (np.zeros(4, np.float32), np.zeros(5, np.float64)):
        with pytest.raises(UpdateShapeError):
            one.add(bad, 1)


def test_the_overflow_bound_is_checked_before_anything_is_added() -> None:
    one = FixedPointSum(1)
    one.add(np.full(1, 2.0**30, np.float32), 1)
    with pytest.raises(AggregationOverflowError):
        one.add(np.full(1, 2.0**30, np.float32), 1)
    assert one.applied_to(np.zeros(1, np.float32))[0] == np.float32(2.0**30)


def test_the_largest_weight_is_accepted_and_one_more_is_not() -> None:
    tiny = np.full(1, 1e-3, np.float32)
    FixedPointSum(1).add(tiny, MAX_WEIGHT)
    for weight in (MAX_WEIGHT + 1, -1):
        with pytest.raises(AggregationOverflowError):
            FixedPointSum(1).add(tiny, weight)


def test_largest_magnitude_sees_both_ends_and_nan() -> None:
    assert largest_magnitude(np.array([1, -3, 2], np.float32)) == 3
    assert largest_magnitude(np.zeros(0, np.float32)) == 0
    assert np.isnan(largest_magnitude(np.array([1, np.nan], np.float32)))


def test_the_inputs_digest_ignores_order_and_sees_every_part() -> None:
    inputs = [("a", "0" * 64, 1), ("b", "1" * 64, 2)]
    digests = {inputs_digest(order) for order in itertools.permutations(inputs)}
    assert len(digests) == 1
    assert inputs_digest([("a", "0" * 64, 2), inputs[1]]) not in digests
