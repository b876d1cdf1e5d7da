"""Every encoding of an update: exact sizes, exact bytes, bounds and errors."""

from __future__ import annotations

import math
import os
import struct
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from agents.core.learning.decoding import clipped_parts, decode_update, update_norm
from agents.core.learning.encodings import (
    BLOCK,
    UnknownEncodingError,
    UpdateSizeError,
    encode_update,
    encoded_size,
)
from agents.core.learning.fixed_point import FixedPointSum, UpdateShapeError
from agents.core.learning.magnitudes import NonFiniteUpdateError, UpdateMagnitudeError

ENCODINGS = ["float32", "float16", "int8", "topk:0.1", "topk:1", "topk:0.000000001"]
SIZES = [0, 1, 2, 999, BLOCK - 1, BLOCK, BLOCK + 1, 256 * BLOCK + 3]


def a_delta(n: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 0.01, n).astype(np.float32)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("n", SIZES)
def test_the_size_of_an_encoded_update_is_what_encoded_size_says(encoding: str, n: int) -> None:
    assert len(encode_update(a_delta(n), encoding)) == encoded_size(encoding, n)


@pytest.mark.parametrize("n", SIZES)
def test_float32_and_topk_of_everything_are_exact(n: int) -> None:
    delta = a_delta(n)
    for encoding in ("float32", "topk:1"):
        np.testing.assert_array_equal(decode_update(encode_update(delta, encoding), encoding, n), delta)


SMALLEST = float(np.finfo(np.float32).smallest_subnormal)


@example(np.array([2e-44], np.float32))
@given(hnp.arrays(np.float32, st.integers(0, 3000), elements=st.floats(-1e4, 1e4, width=32)))
def test_int8_is_off_by_at_most_half_a_step_of_its_block(delta: NDArray[np.float32]) -> None:
    decoded = decode_update(encode_update(delta, "int8"), "int8", len(delta))
    for start in range(0, len(delta), BLOCK):
        block = delta[start : start + BLOCK].astype(np.float64)
        step = np.abs(block).max() / 127
        # The scale is a float32 itself: one below its normal range is off by half of the smallest step there is.
        assert np.abs(decoded[start : start + BLOCK] - block).max() <= step * 0.5001 + 127 * SMALLEST


def test_float16_is_off_by_at_most_half_a_unit_in_the_last_place() -> None:
    delta = a_delta(5000)
    error = np.abs(decode_update(encode_update(delta, "float16"), "float16", 5000) - delta)
    assert (error <= np.abs(delta) * 2**-11 + 2**-25).all()


def test_topk_keeps_the_largest_and_of_equals_the_first() -> None:
    delta = np.array([1, -3, 2, -2, 2, 0], np.float32)
    data = encode_update(delta, "topk:0.5")
    assert data == struct.pack("<3I3f", 1, 2, 3, -3, 2, -2)
    assert decode_update(data, "topk:0.5", 6).tolist() == [0, -3, 2, -2, 0, 0]


def test_int8_bytes_are_one_scale_a_block_then_one_byte_a_value() -> None:
    delta = np.zeros(BLOCK + 3, np.float32)
    delta[:4] = [127, -63.5, 0.5, 1.5]  # halves go to the even neighbour
    delta[BLOCK:] = [0, -0.25, 0.125]
    head = struct.pack("<2f", 1, np.float32(0.25 / 127))
    expected = head + struct.pack("<4b", 127, -64, 0, 2) + bytes(BLOCK - 4) + struct.pack("<3b", 0, -127, 64)
    assert encode_update(delta, "int8") == expected


def test_a_block_of_zeros_decodes_to_zeros() -> None:
    assert not decode_update(encode_update(np.zeros(2000, np.float32), "int8"), "int8", 2000).any()


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_cannot_be_encoded(encoding: str, bad: float) -> None:
    with pytest.raises(NonFiniteUpdateError):
        encode_update(np.array([0, bad], np.float32), encoding)


def test_a_value_too_large_for_float16_cannot_be_encoded_as_one() -> None:
    assert decode_update(encode_update(np.array([65504], np.float32), "float16"), "float16", 1).tolist() == [65504]
    with pytest.raises(NonFiniteUpdateError):
        encode_update(np.array([65520], np.float32), "float16")


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("change", [-1, 1])
def test_one_byte_more_or_less_is_refused(encoding: str, change: int) -> None:
    data = encode_update(a_delta(100), encoding)
    wrong = data[:change] if change < 0 else data + b"\0"
    with pytest.raises(UpdateSizeError):
        decode_update(wrong, encoding, 100)
    with pytest.raises(UpdateSizeError):
        update_norm(wrong, encoding, 100)


@pytest.mark.parametrize(
    ("encoding", "data"),
    [
        ("float32", struct.pack("<2f", 0, math.nan)),
        ("float32", struct.pack("<fI", 0, 0x7FA00000)),  # signalling
        ("float16", struct.pack("<2e", 0, math.inf)),
        ("int8", struct.pack("<f2b", math.nan, 0, 0)),
        ("int8", struct.pack("<f2b", 3e38, 127, 0)),
        ("topk:1", struct.pack("<2I2f", 0, 1, 0, math.inf)),
    ],
)
def test_bytes_that_decode_to_a_value_that_is_not_finite_are_refused(encoding: str, data: bytes) -> None:
    with pytest.raises(NonFiniteUpdateError):
        decode_update(data, encoding, 2)
    with pytest.raises(NonFiniteUpdateError):
        update_norm(data, encoding, 2)
    with pytest.raises(NonFiniteUpdateError):
        FixedPointSum(2).add_update(clipped_parts(data, encoding, 2, check=False), 1)


def test_every_half_precision_float_decodes_to_itself_or_is_refused() -> None:
    for number in range(2**16):
        (value,) = struct.unpack("<e", struct.pack("<H", number))
        if math.isfinite(value):
            continue
        with pytest.raises(NonFiniteUpdateError):
            decode_update(struct.pack("<H", number), "float16", 1)
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    finite = halves[np.isfinite(halves)]
    decoded = decode_update(finite.tobytes(), "float16", finite.size)
    assert decoded.tobytes() == finite.astype(np.float32).tobytes()


@pytest.mark.parametrize("indices", [(1, 0), (0, 0), (0, 2), (0, 2**32 - 1)])
def test_indices_that_do_not_ascend_within_the_model_are_refused(indices: tuple[int, int]) -> None:
    with pytest.raises(UpdateShapeError):
        decode_update(struct.pack("<2I2f", *indices, 1, 1), "topk:1", 2)


@pytest.mark.parametrize(
    "name",
    ["", "float64", "topk", "topk:", "topk:0", "topk:0.0", "topk:1.1", "topk:2", "topk:1e-3", "topk:nan", "INT8"],
)
def test_an_unknown_encoding_is_named_in_the_error(name: str) -> None:
    with pytest.raises(UnknownEncodingError, match="unknown encoding"):
        encoded_size(name, 1)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_the_norm_is_that_of_the_decoded_update(encoding: str) -> None:
    n = 256 * BLOCK + 77
    data = encode_update(a_delta(n), encoding)
    expected = float(np.linalg.norm(decode_update(data, encoding, n).astype(np.float64)))
    assert update_norm(data, encoding, n) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_larger_update_is_scaled_down_to_the_norm_and_keeps_its_direction(encoding: str) -> None:
    n = 256 * BLOCK + 77
    data = encode_update(a_delta(n), encoding)
    whole, limit = decode_update(data, encoding, n), update_norm(data, encoding, n) / 3
    clipped = decode_update(data, encoding, n, clip_norm=limit)
    norm = float(np.linalg.norm(clipped.astype(np.float64)))
    assert limit * (1 - 1e-6) < norm <= limit
    np.testing.assert_allclose(clipped, whole / 3, rtol=1e-6)


def test_the_norm_is_summed_in_the_same_pieces_for_ever() -> None:
    delta = a_delta(1000 * BLOCK + 77)
    squares = 0.0
    for start in range(0, delta.size, 256 * BLOCK):
        wide = delta[start : start + 256 * BLOCK].astype(np.float64)
        whole = len(wide) // 8192 * 8192
        rows = np.array([float(np.dot(row, row)) for row in wide[:whole].reshape(-1, 8192)])
        squares += float(rows.sum() + np.dot(wide[whole:], wide[whole:]))
    assert update_norm(delta.tobytes(), "float32", delta.size) == math.sqrt(squares)


def test_the_norm_does_not_hang_on_the_number_of_threads() -> None:
    code = (
        "import numpy as np; from agents.core.learning.decoding import update_norm;"
        "d = np.random.default_rng(0).normal(size=1_100_003).astype('<f4');"
        "print(update_norm(d.tobytes(), 'float32', d.size).hex())"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"OPENBLAS_NUM_THREADS": str(threads)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for threads in (1, 2, 3)
    }
    assert len(found) == 1


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_value_at_the_bound_passes_and_one_above_it_does_not(encoding: str) -> None:
    n = 256 * BLOCK + 77
    data = encode_update(a_delta(n), encoding)
    top = float(np.abs(decode_update(data, encoding, n)).max())
    below = float(np.nextafter(np.float32(top), np.float32(0)))
    assert update_norm(data, encoding, n, largest=top) == update_norm(data, encoding, n)
    FixedPointSum(n).add_update(clipped_parts(data, encoding, n, largest=top, check=False), 1)
    with pytest.raises(UpdateMagnitudeError):
        update_norm(data, encoding, n, largest=below)
    one, empty = FixedPointSum(n), np.zeros(n, np.float32)
    with pytest.raises(UpdateMagnitudeError):
        one.add_update(clipped_parts(data, encoding, n, largest=below, check=False), 1)
    one.add(empty, 1)
    assert not one.applied_to(empty).any()


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_norm_that_is_known_clips_to_the_same_bits(encoding: str) -> None:
    n = 256 * BLOCK + 77
    data = encode_update(a_delta(n), encoding)
    norm = update_norm(data, encoding, n)
    told = FixedPointSum(n)
    told.add_update(clipped_parts(data, encoding, n, norm / 3, norm=norm), 1)
    expected = FixedPointSum(n)
    expected.add(decode_update(data, encoding, n, clip_norm=norm / 3), 1)
    parent = np.zeros(n, np.float32)
    assert told.applied_to(parent).tobytes() == expected.applied_to(parent).tobytes()


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("clip", [None, 0.5, 1e9])
def test_parts_are_the_update_in_any_order_and_as_often_as_one_likes(encoding: str, clip: float | None) -> None:
    n = 700 * BLOCK + 77
    data = encode_update(a_delta(n), encoding)
    parts, delta = clipped_parts(data, encoding, n, clip), np.zeros(n, np.float32)
    for where, values in [*reversed(parts), *parts[1:], parts[-1]]:
        delta[where] = values
    assert delta.tobytes() == decode_update(data, encoding, n, clip_norm=clip).tobytes()
    assert len({int(where.start if isinstance(where, slice) else where[0]) for where, _ in parts}) == len(parts)


def test_an_update_too_large_to_be_decoded_at_once_is_clipped_to_the_same_bits() -> None:
    n = (16 << 20) + 5
    data = np.ones(4 * -(-n // BLOCK) + n, np.uint8)
    data[: 4 * -(-n // BLOCK)] = np.frombuffer(np.float32(0.5).tobytes() * -(-n // BLOCK), np.uint8)
    limit = update_norm(data, "int8", n) / 3
    factor = np.nextafter(np.float32(1 / 3), np.float32(0))
    parts = clipped_parts(data, "int8", n, limit)
    assert {value for _, values in parts for value in np.unique(values)} == {np.float32(0.5) * factor}
    assert sum(values.size for _, values in parts) == n


def test_indices_that_meet_across_two_parts_are_refused_before_any_is_read() -> None:
    n = 600 * BLOCK
    indices = np.arange(n, dtype=np.uint32)
    indices[256 * BLOCK] = 256 * BLOCK - 1
    with pytest.raises(UpdateShapeError):
        clipped_parts(indices.tobytes() + bytes(4 * n), "topk:1", n)


@pytest.mark.parametrize("above", [1.0, 1.5, 1e30])
def test_an_update_within_the_norm_keeps_its_bits(above: float) -> None:
    data = encode_update(a_delta(500), "float32")
    limit = above * update_norm(data, "float32", 500)
    assert decode_update(data, "float32", 500, clip_norm=limit).tobytes() == data


@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=50), st.floats(1e-3, 1e3))
def test_no_clipped_update_is_past_the_norm(values: list[float], limit: float) -> None:
    data = encode_update(np.array(values, np.float32), "float32")
    clipped = decode_update(data, "float32", len(values), clip_norm=limit)
    assert float(np.linalg.norm(clipped.astype(np.float64))) <= limit * (1 + 1e-6)


def test_anything_but_a_float32_vector_is_refused() -> None:
    with pytest.raises(UpdateShapeError):
        encode_update(np.zeros((2, 2), np.float32), "float32")
    with pytest.raises(UpdateShapeError):
        encode_update(np.zeros(2, np.float64), "float32")
