"""Fixed-point averaging: any order and grouping, the same bits."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from fractions import Fraction
from threading import Lock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from agents.core.learning.fixed_point import (
    MAX_WEIGHT,
    AggregationOverflowError,
    FixedPointSum,
    Part,
    UpdateShapeError,
    inputs_digest,
)
from agents.core.learning.magnitudes import (
    NonFiniteUpdateError,
    UpdateMagnitudeError,
    check_magnitude,
    largest_magnitude,
    value_bound,
)

DELTAS = arrays(np.float32, 5, elements=st.floats(-100, 100, width=32))
FINITE = arrays(
    np.float32, 3, elements=st.floats(-(2.0**17), 2.0**17, width=32) | st.floats(-(2.0**-17), 2.0**-17, width=32)
)
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


def test_the_sum_goes_up_to_the_bound_exactly() -> None:
    one, top = FixedPointSum(1), np.float32(2.0**31 - 128)
    with pytest.raises(AggregationOverflowError):
        one.add(np.full(1, 2.0**31, np.float32), 1)
    one.add(np.full(1, -top), 1)
    with pytest.raises(AggregationOverflowError):
        one.add(np.full(1, -128, np.float32), 1)
    assert (one.updates, one.applied_to(np.zeros(1, np.float32))[0]) == (1, -top)
    one.add(np.full(1, -127.99, np.float32), 1)
    assert one.applied_to(np.zeros(1, np.float32))[0] == np.float32(-(2.0**30))


def test_an_update_past_half_of_the_bound_is_taken_out_again() -> None:
    one, large = FixedPointSum(1), np.full(1, 1.5 * 2.0**30, np.float32)
    one.add(large, 1)
    one.remove(large, 1)
    one.add(-large, 1)
    assert one.applied_to(np.zeros(1, np.float32)) == -large


@given(st.lists(st.tuples(FINITE, st.integers(0, 2**10) | st.integers(2**28, MAX_WEIGHT)), min_size=1, max_size=4))
def test_each_value_counts_as_the_nearest_integer_and_halves_as_the_even_one(updates) -> None:
    one, exact, weights = FixedPointSum(3), [0, 0, 0], 0
    for delta, weight in updates:
        # Its opposite, a little less, leaves the last bits alone.
        for values in (delta, np.nextafter(-delta, np.float32(0))):
            try:
                one.add(values, weight)
            except AggregationOverflowError:
                continue
            weights += weight
            exact = [
                total + round(Fraction(float(value)) * weight * 2**32)
                for total, value in zip(exact, values, strict=True)
            ]
    if weights:
        expected = np.array([total / (weights * 2.0**32) for total in exact])
        assert one.applied_to(np.zeros(3, np.float32)).tobytes() == expected.astype(np.float32).tobytes()


def test_a_large_update_that_threads_share_gives_the_bits_of_its_pieces() -> None:
    step, count = 2**18, 9
    deltas = [
        np.random.default_rng(seed).normal(size=count * step + 5).astype(np.float32) * 10.0**seed for seed in range(3)
    ]
    whole = FixedPointSum(deltas[0].size)
    for weight, delta in enumerate(deltas, 1):
        whole.add(delta, weight)
    model = whole.applied_to(np.zeros(whole.size, np.float32))
    for start in range(0, whole.size, step):
        pieces = [delta[start : start + step] for delta in deltas]
        one = FixedPointSum(pieces[0].size)
        for weight, piece in enumerate(pieces, 1):
            one.add(piece, weight)
        alone = one.applied_to(np.zeros(one.size, np.float32))
        assert alone.tobytes() == model[start : start + step].tobytes()


class Read(Sequence[Part]):
    """Parts of one value each, which count how often they are read and raise what stands in their place."""

    def __init__(self, contents: Sequence[float | Exception]) -> None:
        self.contents = contents
        self.reads = [0] * len(contents)
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self.contents)

    def __getitem__(self, index):
        with self._lock:
            self.reads[index] += 1
        content = self.contents[index]
        if isinstance(content, Exception):
            raise content
        where = slice(index, index + 1) if index % 2 else np.array([index], np.uint32)
        return where, np.array([content], np.float32)


COUNT = 40
VALUES = st.lists(st.floats(-100, 100, width=32), min_size=COUNT, max_size=COUNT)


@given(VALUES)
def test_each_part_is_read_once_and_the_order_of_threads_does_not_show(values) -> None:
    parts, one, other = Read(values), FixedPointSum(COUNT), FixedPointSum(COUNT)
    one.add_update(parts, 3)
    other.add(np.array(values, np.float32), 3)
    assert parts.reads == [1] * COUNT
    parent = np.zeros(COUNT, np.float32)
    assert one.applied_to(parent).tobytes() == other.applied_to(parent).tobytes()


WRONG = st.sampled_from([np.nan, np.inf, -np.inf, 2.0**31, 3e38, UpdateShapeError("no part")])


@given(VALUES, VALUES, st.dictionaries(st.integers(0, COUNT - 1), WRONG, min_size=1, max_size=3))
def test_whatever_is_wrong_with_whichever_part_the_sum_is_as_before(before, values, wrong) -> None:
    one, parent = FixedPointSum(COUNT), np.zeros(COUNT, np.float32)
    one.add(np.array(before, np.float32), 7)
    model = one.applied_to(parent)
    parts = Read([wrong.get(index, value) for index, value in enumerate(values)])
    with pytest.raises((NonFiniteUpdateError, UpdateShapeError, AggregationOverflowError)):
        one.add_update(parts, 2)
    assert (one.weight, one.updates) == (7, 1)
    assert one.applied_to(parent).tobytes() == model.tobytes()
    one.remove(np.array(before, np.float32), 7)
    one.add(np.array(values, np.float32), 2)
    alone = FixedPointSum(COUNT)
    alone.add(np.array(values, np.float32), 2)
    assert one.applied_to(parent).tobytes() == alone.applied_to(parent).tobytes()


@pytest.mark.parametrize("first", [4, 5, 39])
def test_of_several_errors_that_of_the_first_part_is_raised_and_past_the_bound_comes_last(first: int) -> None:
    contents: list[float | Exception] = [1.0] * COUNT
    contents[1] = 2.0**31
    contents[first] = UpdateShapeError("the first")
    contents[first + 1 :: 3] = [np.nan] * len(contents[first + 1 :: 3])
    with pytest.raises(UpdateShapeError, match="the first"):
        FixedPointSum(COUNT).add_update(Read(contents), 1)


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
    assert np.isnan(largest_magnitude(np.array([0x7FA00000], np.uint32).view(np.float32)))  # a signalling one


def test_the_inputs_digest_ignores_order_and_sees_every_part() -> None:
    inputs = [("a", "0" * 64, 1), ("b", "1" * 64, 2)]
    digests = {inputs_digest(order) for order in itertools.permutations(inputs)}
    assert len(digests) == 1
    assert inputs_digest([("a", "0" * 64, 2), inputs[1]]) not in digests


@pytest.mark.parametrize(
    ("updates", "weight"), [(1, 1), (1, 20), (3, 2**22), (100, 20), (1000, 2**14), (100_000, 1000)]
)
@pytest.mark.parametrize("sign", [1, -1])
def test_a_full_round_of_updates_at_the_bound_fits_the_sum(updates: int, weight: int, sign: int) -> None:
    bound = value_bound(updates, weight)
    value = np.full(1, sign * bound, np.float32)
    assert float(abs(value[0])) == bound
    check_magnitude(value, bound)
    one = FixedPointSum(1)
    for _ in range(min(updates, 1000)):
        one.add(value, min(MAX_WEIGHT, weight * updates // min(updates, 1000)))
    assert one.applied_to(np.zeros(1, np.float32)) == value


@pytest.mark.parametrize("factor", [1, -1])
def test_one_ulp_above_the_bound_is_past_it(factor: int) -> None:
    for bound in (value_bound(100, 20), value_bound(100_000, 1000)):
        with pytest.raises(UpdateMagnitudeError):
            check_magnitude(factor * np.nextafter(np.full(1, bound, np.float32), np.float32(np.inf)), bound)
