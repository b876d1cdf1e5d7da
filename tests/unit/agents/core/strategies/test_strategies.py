"""Every strategy: the same bits in any order and any blocks, what its paper says, what is kept from round to round."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from agents.core.learning.decoding import decode_update
from agents.core.learning.encodings import encode_update
from agents.core.learning.fixed_point import FixedPointSum
from agents.core.learning.magnitudes import NonFiniteUpdateError
from agents.core.rounds.aggregation import Made, RoundAggregation
from agents.core.strategies import gathering
from agents.core.strategies.gathering import EachUpdate
from agents.core.strategies.median import median_of
from agents.core.strategies.registry import built_in
from agents.core.strategies.strategy import Step
from agents.words.run_config import RunConfig
from bus.errors import ObjectCorruptError
from tests.builders import Stream, assigned, config, planned, ref_of, run_started, submitted

STRATEGIES = sorted(built_in())
SIZE = 7
PARENT = np.float32([-0.0, 0.0, 1, -1, 0.3, 1e-30, 3e7])
VALUES = st.one_of(st.sampled_from([0.0, -0.0, 0.5, -0.5]), st.floats(-100, 100, width=32))
DELTAS = arrays(np.float32, SIZE, elements=VALUES)
UPDATES = st.lists(st.tuples(DELTAS, st.integers(0, 1000)), min_size=1, max_size=6)
Updates = Sequence[tuple[NDArray[np.float32], int]]


def settings_for(strategy: str, **changes: object) -> RunConfig:
    return config().model_copy(update={"strategy": strategy, **changes})


def round_of(
    run: RunConfig,
    updates: Updates,
    *,
    order: Sequence[int] | None = None,
    encoding: str = "float32",
    kept: bytes = b"",
) -> tuple[RoundAggregation, bytes, bytes | None]:
    """A round whose updates were added in this order; then the bytes of its parent and of the server's state."""
    stream, one = Stream(), RoundAggregation(run_started(run), 1)
    plan = planned(len(updates), len(updates)).model_copy(
        update={"base_model": ref_of(PARENT.tobytes()), "server_state": ref_of(kept) if kept else None}
    )
    one.fold(stream.add(plan))
    data = {}
    for index, (delta, weight) in enumerate(updates):
        one.fold(stream.add(assigned(f"u{index}")))
        data[f"u{index}"] = encode_update(delta, encoding)
        update = submitted(f"u{index}", delta, base=plan.base_model, examples=weight)
        one.fold(stream.add(update.model_copy(update={"encoding": encoding})))
    wanted = one.wanted()
    for index in order or range(len(updates)):
        one.add(wanted[index], data[wanted[index].update.user])
    assert one.wanted() == []
    return one, PARENT.tobytes(), kept or None


def made(run: RunConfig, updates: Updates, **how: object) -> Made | None:
    one, parent, kept = round_of(run, updates, **how)  # type: ignore[arg-type]
    return one.made(parent, kept)


def bits(result: Made | None) -> tuple[bytes, bytes] | None:
    if result is None:
        return None
    return result.model.tobytes(), b"" if result.server_state is None else result.server_state.tobytes()


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("encoding", ["float32", "float16", "int8", "topk:0.5"])
@pytest.mark.parametrize("clip", [None, 10.0])
@settings(max_examples=20)
@given(updates=UPDATES, data=st.data())
def test_any_order_of_arrival_gives_the_same_bits(
    strategy: str, encoding: str, clip: float | None, updates: Updates, data: st.DataObject
) -> None:
    run = settings_for(strategy, max_update_norm=clip, over_norm="clip" if clip else "refuse")
    order = data.draw(st.permutations(range(len(updates))))
    assert bits(made(run, updates, encoding=encoding)) == bits(made(run, updates, encoding=encoding, order=order))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_width_of_a_block_changes_no_bit(strategy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    updates = [(generator.normal(size=SIZE).astype(np.float32), 1 + index) for index in range(4)]
    whole = bits(made(settings_for(strategy), updates))
    monkeypatch.setattr(gathering, "BLOCK_BYTES", 2 * 4 * len(updates))
    blocks = Step.blocks
    monkeypatch.setattr(Step, "blocks", lambda self: blocks(self, 2))
    assert bits(made(settings_for(strategy), updates)) == whole


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_round_whose_updates_have_no_weight_leaves_model_and_state_as_they_are(strategy: str) -> None:
    kept = np.full(len(built_in()[strategy].VECTORS) * SIZE, 0.5, "<f4").tobytes()
    updates = [(np.ones(SIZE, np.float32), 0)] * 2
    one, parent, before = round_of(settings_for(strategy), updates, kept=kept)
    assert one.made(parent, before) is None
    assert one.digests(parent, before) == (ref_of(parent).sha256, ref_of(kept).sha256 if kept else None)


@given(updates=UPDATES)
def test_fedavg_is_the_weighted_mean_of_the_fixed_point_sum(updates: Updates) -> None:
    total = FixedPointSum(SIZE)
    for delta, weight in updates:
        total.add(delta, weight)
    result = made(settings_for("fedavg"), updates)
    expected = total.applied_to(PARENT).tobytes()
    assert (PARENT.tobytes() if result is None else result.model.tobytes()) == expected


@given(updates=UPDATES)
def test_the_median_is_that_of_the_updates_with_weight_however_much_they_have(updates: Updates) -> None:
    result = made(settings_for("median"), updates)
    counted = [delta for delta, weight in updates if weight > 0]
    if not counted:
        assert result is None
        return
    assert result is not None
    median = np.median(np.array(counted, np.float64), axis=0).astype(np.float32)
    expected = (PARENT.astype(np.float64) + median).astype(np.float32)
    np.testing.assert_array_equal(result.model, expected)


@pytest.mark.parametrize(
    ("values", "median"),
    [([3.0], 3.0), ([1, 9, 2], 2.0), ([4, 1, 3, 2], 2.5), ([-0.0, 0.0, -0.0], 0.0), ([3e38, 3e38], np.float32(3e38))],
)
def test_a_median_is_the_middle_value_or_half_the_sum_of_two(values: list[float], median: float) -> None:
    found = median_of(np.float32(values)[:, None])
    assert found.tobytes() == np.float32([median]).tobytes()


@given(updates=st.lists(DELTAS, min_size=3, max_size=7), wild=DELTAS)
def test_a_minority_that_sends_anything_cannot_move_the_median_past_what_others_sent(
    updates: list[NDArray[np.float32]], wild: NDArray[np.float32]
) -> None:
    minority = (len(updates) - 1) // 2
    median = median_of(np.array([*updates, *[wild * np.float32(1e6)] * minority]))
    assert (np.min(updates, axis=0) <= median).all()
    assert (median <= np.max(updates, axis=0)).all()


def test_fedadam_takes_the_steps_of_its_paper() -> None:
    eta, b1, b2, tau = 0.5, 0.8, 0.95, 0.01
    run = settings_for("fedadam", strategy_settings={"server_learning_rate": eta, "beta1": b1, "beta2": b2, "tau": tau})
    generator = np.random.default_rng(1)
    x, m, v = PARENT.astype(np.float64), np.zeros(SIZE), np.full(SIZE, tau**2)
    kept = b""
    for _ in range(3):
        delta = generator.normal(size=SIZE).astype(np.float32)
        result = made(run, [(delta, 3)], kept=kept)
        assert result is not None
        assert result.server_state is not None
        m = b1 * m + (1 - b1) * delta
        v = b2 * v + (1 - b2) * delta.astype(np.float64) ** 2
        np.testing.assert_allclose(result.server_state, np.concatenate([m, v]), rtol=1e-6)
        np.testing.assert_allclose(result.model, x + eta * m / (np.sqrt(v) + tau), rtol=1e-5, atol=1e-7)
        kept = result.server_state.tobytes()


def test_a_server_state_of_another_size_is_refused() -> None:
    one, parent, _ = round_of(settings_for("fedadam"), [(np.ones(SIZE, np.float32), 1)])
    with pytest.raises(ObjectCorruptError, match="server state"):
        one.made(parent, b"\0" * 4)
    with pytest.raises(ObjectCorruptError, match="base model"):
        one.made(parent[:-1], None)


def test_each_update_is_kept_by_itself_and_a_bad_one_leaves_no_trace() -> None:
    kept = EachUpdate(SIZE)
    rows = {user: np.arange(SIZE, dtype=np.float32) * sign for user, sign in (("b", 1), ("a", -1), ("c", 2))}

    def parts(user: str, encoding: str = "float32"):
        data = encode_update(rows[user], encoding)
        return [(slice(0, SIZE), decode_update(data, encoding, SIZE))]

    bad = [(slice(0, 3), np.ones(3, np.float32)), (slice(3, 4), np.full(1, np.nan, np.float32))]

    kept.add("b", parts("b"), 2)
    with pytest.raises(NonFiniteUpdateError):
        kept.add("bad", bad, 1)
    kept.add("a", parts("a"), 3)
    kept.add("weightless", parts("c"), 0)
    kept.add("c", [(np.uint32([6, 1]), np.float32([12, 2]))], 1)
    assert (kept.weight, kept.weights) == (6, {"b": 2, "a": 3, "c": 1})
    ((block, values),) = kept.blocks()
    assert block == slice(0, SIZE)
    np.testing.assert_array_equal(values, [rows["a"], rows["b"], np.float32([0, 2, 0, 0, 0, 0, 12])])


def test_the_run_of_a_strategy_without_vectors_keeps_nothing() -> None:
    for strategy in STRATEGIES:
        result = made(settings_for(strategy), [(np.ones(SIZE, np.float32), 1)])
        assert result is not None
        assert (result.server_state is not None) == bool(built_in()[strategy].VECTORS)


def test_the_memory_of_a_median_does_not_grow_with_the_number_of_updates() -> None:
    script = """
import resource, sys
import numpy as np
from agents.core.strategies.gathering import EachUpdate
from agents.core.strategies.median import Median
from agents.core.strategies.strategy import Step

size = 1_000_000
kept, values = EachUpdate(size), np.ones(size, np.float32)
step = Step(1, values, None, np.empty(size, np.float32), {})
for count in range(int(sys.argv[1])):
    kept.add(f"u{count}", [(slice(0, size), values)], 1)
Median().step(kept, step)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""

    def peak_mb(updates: int) -> int:
        done = subprocess.run(
            [sys.executable, "-c", script, str(updates)], capture_output=True, text=True, timeout=60, check=True
        )
        return int(done.stdout)

    # Thirty more updates are 120 MB.
    assert peak_mb(40) - peak_mb(10) < 30
