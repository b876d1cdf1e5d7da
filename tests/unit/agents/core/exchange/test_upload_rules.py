"""What an upload, an update and its metrics must be: each bound, on both sides."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from agents.core.exchange.messages import ProtocolError
from agents.core.exchange.upload_rules import (
    Expected,
    Progression,
    UpdateRefusedError,
    check_metrics,
    check_size,
    check_update,
)
from agents.core.learning.encodings import encode_update
from agents.core.learning.magnitudes import value_bound
from agents.words.events import UpdateMetrics
from tests.builders import config

LABELS = (1, None, 0)
RIGHT: dict[str, Any] = {"predictions": (0, 1, 0), "examples": 2, "mismatched_images": 1, "trained_images": 7}


def expected(
    *, norm: float | None = None, over: str = "refuse", encoding: str = "float32", epochs: int = 1
) -> Expected:
    base = config()
    training = base.training.model_copy(update={"encoding": encoding, "epochs": epochs})
    run = base.model_copy(update={"training": training, "max_update_norm": norm, "over_norm": over})
    return Expected(config=run, parameters=4, base_model="0" * 64, classes=3, labels=LABELS)


def code_of(metrics: dict[str, Any], **how: Any) -> str:
    with pytest.raises(UpdateRefusedError) as refused:
        check_metrics(UpdateMetrics.model_validate(RIGHT | metrics), expected(**how))
    return refused.value.code


@pytest.mark.parametrize(
    ("offset", "length", "code"), [(9, 1, "bad_offset"), (11, 1, "bad_offset"), (10, 11, "too_large")]
)
def test_a_chunk_with_a_gap_an_overlap_or_past_the_end_is_refused(offset: int, length: int, code: str) -> None:
    with pytest.raises(ProtocolError) as refused:
        Progression(size=20, offset=10).check(offset, length)
    assert refused.value.code == code


def test_a_chunk_may_end_exactly_at_the_announced_size() -> None:
    Progression(size=20, offset=10).check(10, 10)
    assert Progression(size=20, offset=20).complete
    assert not Progression(size=20, offset=19).complete


@pytest.mark.parametrize("size", [0, 15, 17])
def test_an_update_of_another_size_than_its_encoding_takes_is_refused(size: int) -> None:
    with pytest.raises(UpdateRefusedError, match="takes 16 bytes"):
        check_size(size, expected(), 1000)


def test_the_gateways_own_limit_counts_too() -> None:
    check_size(16, expected(), 16)
    with pytest.raises(UpdateRefusedError, match="at most 15 bytes"):
        check_size(16, expected(), 15)


def test_a_run_that_clips_takes_an_update_of_any_norm_but_none_that_is_not_finite() -> None:
    check_update(np.full(4, 1e6, "<f4").tobytes(), expected(norm=1.0, over="clip"))
    with pytest.raises(UpdateRefusedError) as refused:
        check_update(np.full(4, np.inf, "<f4").tobytes(), expected(norm=1.0, over="clip"))
    assert refused.value.code == "nonfinite"


def test_an_update_at_the_norm_passes_and_one_above_does_not() -> None:
    data = encode_update(np.array([3, 0, 0, 4], np.float32), "float32")
    check_update(data, expected(norm=5.0))
    with pytest.raises(UpdateRefusedError) as refused:
        check_update(data, expected(norm=4.999))
    assert refused.value.code == "norm"


def bounded(users: int, over: str = "refuse") -> Expected:
    return dataclasses.replace(expected(norm=None, over=over), largest_value=value_bound(users, 20))


@pytest.mark.parametrize("users", [1, 10, 100, 1000])
@pytest.mark.parametrize("value", [1e30, 1.07e8, 2.0**31, -(2.0**31), 1025])
@pytest.mark.parametrize("places", [slice(None), slice(2, 3)])
def test_an_update_with_a_huge_value_is_refused(users: int, value: float, places: slice) -> None:
    delta = np.zeros(4, np.float32)
    delta[places] = value
    with pytest.raises(UpdateRefusedError) as refused:
        check_update(delta.tobytes(), bounded(users))
    assert refused.value.code == "magnitude"


@pytest.mark.parametrize("users", [1, 100, 100_000])
@pytest.mark.parametrize("sign", [1, -1])
def test_values_at_the_rounds_bound_pass_and_one_ulp_above_it_do_not(users: int, sign: int) -> None:
    given = bounded(users)
    assert given.largest_value is not None
    edge = np.full(4, sign * given.largest_value, np.float32)
    assert check_update(edge.tobytes(), given) == pytest.approx(2 * given.largest_value)
    edge[3] = np.nextafter(edge[3], np.float32(sign * np.inf))
    with pytest.raises(UpdateRefusedError) as refused:
        check_update(edge.tobytes(), given)
    assert refused.value.code == "magnitude"


@pytest.mark.parametrize(
    ("encoding", "data", "code"),
    [
        ("float32", bytes(15), "size"),
        ("float32", np.array([0, 0, 0, np.nan], "<f4").tobytes(), "nonfinite"),
        ("topk:0.5", np.array([1, 1], "<u4").tobytes() + bytes(8), "shape"),
    ],
)
def test_an_update_that_does_not_decode_is_refused_by_its_fault(encoding: str, data: bytes, code: str) -> None:
    with pytest.raises(UpdateRefusedError) as refused:
        check_update(data, expected(encoding=encoding))
    assert refused.value.code == code


def test_metrics_that_agree_with_the_labels_pass() -> None:
    check_metrics(UpdateMetrics.model_validate(RIGHT), expected())
    check_metrics(UpdateMetrics.model_validate(RIGHT | {"trained_images": 21}), expected(epochs=3))


@pytest.mark.parametrize(
    "wrong",
    [
        {"predictions": (0, 1)},
        {"predictions": (0, 1, 0, 0)},
        {"predictions": (0, -1, 0)},
        {"predictions": (0, 3, 0)},
        {"examples": 3},
        {"mismatched_images": 2},
        {"trained_images": 6},
        {"trained_images": 0},
    ],
)
def test_metrics_that_contradict_the_labels_or_each_other_are_refused(wrong: dict[str, Any]) -> None:
    assert code_of(wrong) == "metrics"


def test_epochs_count_in_the_trained_images() -> None:
    assert code_of({}, epochs=2) == "metrics"
