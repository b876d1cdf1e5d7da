"""The rate in the bytes of an optimizer model, against what onnx itself makes of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from onnx import numpy_helper

from artifacts.errors import OptimizerModelError
from artifacts.learning_rate import with_learning_rate
from artifacts.optimizer import LEARNING_RATE_INITIALIZER, build_optimizer

RATES = st.floats(min_value=2**-149, max_value=float(np.finfo(np.float32).max), width=32) | st.floats(1e-38, 1e38)
MODELS = [
    build_optimizer("sgd", learning_rate=0.03),
    build_optimizer("adamw", learning_rate=1e-3, weight_decay=0.1, clip_norm=0.5),
]


def by_onnx(model: bytes, rate: float) -> bytes:
    """The same change by onnx, which parses the model and writes all of it anew."""
    parsed: Any = onnx.load_model_from_string(model)
    (tensor,) = [one for one in parsed.graph.initializer if one.name == LEARNING_RATE_INITIALIZER]
    tensor.CopyFrom(numpy_helper.from_array(np.array([rate], "<f4"), LEARNING_RATE_INITIALIZER))
    content: bytes = parsed.SerializeToString(deterministic=True)
    return content


@pytest.mark.parametrize("model", MODELS)
@given(rate=RATES)
@example(rate=1 + 2**-24)
def test_the_bytes_are_those_that_onnx_writes(model: bytes, rate: float) -> None:
    assert with_learning_rate(model, LEARNING_RATE_INITIALIZER, rate) == by_onnx(model, rate)


def test_the_first_rate_brings_the_first_bytes_back() -> None:
    slow = with_learning_rate(MODELS[0], LEARNING_RATE_INITIALIZER, 0.01)
    assert slow != MODELS[0]
    assert with_learning_rate(slow, LEARNING_RATE_INITIALIZER, 0.03) == MODELS[0]


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf"), 1e-60, 1e60])
def test_a_rate_that_is_no_positive_float32_is_refused(rate: float) -> None:
    with pytest.raises(OptimizerModelError, match="not a positive finite"):
        with_learning_rate(MODELS[0], LEARNING_RATE_INITIALIZER, rate)


@pytest.mark.parametrize("content", [b"", b"no model at all", b"\xff" * 64, MODELS[0][:-40]])
def test_bytes_that_are_no_model_are_refused(content: bytes) -> None:
    with pytest.raises(OptimizerModelError):
        with_learning_rate(content, LEARNING_RATE_INITIALIZER, 0.1)


@given(st.binary(max_size=200), st.integers(0, len(MODELS[0])))
def test_damaged_bytes_never_give_another_error(noise: bytes, at: int) -> None:
    damaged = MODELS[0][:at] + noise + MODELS[0][at:]
    try:
        changed = with_learning_rate(damaged, LEARNING_RATE_INITIALIZER, 0.1)
    except OptimizerModelError:
        return
    assert len(changed) == len(damaged)
    assert np.float32(0.1).tobytes() in changed


@pytest.mark.parametrize("name", ["another", "fedbus.learning_rate_gai"])
def test_a_model_without_the_initializer_is_refused(name: str) -> None:
    with pytest.raises(OptimizerModelError, match=name):
        with_learning_rate(MODELS[0], name, 0.1)


@pytest.mark.parametrize("values", [np.array([0.1]), np.array([0.1, 0.2], "<f4"), np.array(0.1, "<f4")])
def test_an_initializer_of_another_type_or_shape_is_none(values: Any) -> None:
    parsed: Any = onnx.load_model_from_string(MODELS[0])
    tensor = next(one for one in parsed.graph.initializer if one.name == LEARNING_RATE_INITIALIZER)
    tensor.CopyFrom(numpy_helper.from_array(values, LEARNING_RATE_INITIALIZER))
    with pytest.raises(OptimizerModelError, match="has no float32"):
        with_learning_rate(parsed.SerializeToString(), LEARNING_RATE_INITIALIZER, 0.1)
