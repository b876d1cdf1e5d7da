from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from data import shards
from data.errors import ShardError
from data.shards import decode_shard, encode_shard


def pictures(count: int = 3) -> Any:
    return np.random.default_rng(0).integers(0, 256, (count, 5, 4, 3), dtype=np.uint8)


def test_a_shard_comes_back_as_it_was_encoded() -> None:
    images, labels = decode_shard(encode_shard(pictures()))
    assert np.array_equal(images, pictures())
    assert labels is None
    _, labels = decode_shard(encode_shard(pictures(), np.array([2, 0, 1])))
    assert labels is not None
    assert labels.tolist() == [2, 0, 1]


def test_equal_images_give_equal_bytes_in_any_memory_layout() -> None:
    images = pictures(6)
    assert encode_shard(images[::2]) == encode_shard(np.ascontiguousarray(images[::2]))


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"pixels": pictures()},
        {"images": pictures(), "more": np.zeros(3)},
        {"images": pictures().astype(np.float32)},
        {"images": pictures()[0]},
        {"images": pictures()[:0]},
        {"images": np.zeros((1, 1025, 4, 3), np.uint8)},
        {"images": np.zeros((1, 4, 4, 5), np.uint8)},
        {"images": pictures(), "labels": np.zeros(2, np.int64)},
        {"images": pictures(), "labels": np.zeros(3, np.int32)},
    ],
)
def test_tensors_that_are_no_shard_are_refused(tensors: dict[str, Any]) -> None:
    with pytest.raises(ShardError):
        decode_shard(save(tensors))


@pytest.mark.parametrize("kind", ["BF16", "F8_E4M3", "F8_E5M2", "F3", ""])
def test_numbers_of_a_kind_that_numpy_does_not_have_are_refused(kind: str) -> None:
    size = 2 if kind == "BF16" else 1
    header = json.dumps({"images": {"dtype": kind, "shape": [1, 2, 2, 1], "data_offsets": [0, 4 * size]}}).encode()
    with pytest.raises(ShardError, match="no safetensors object"):
        decode_shard(struct.pack("<Q", len(header)) + header + bytes(4 * size))


def test_what_cannot_be_decoded_is_not_encoded_either() -> None:
    with pytest.raises(ShardError):
        encode_shard(pictures().astype(np.int32))
    with pytest.raises(ShardError):
        encode_shard(pictures(), np.zeros(4, np.int64))


def test_a_shard_beyond_the_limit_is_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "MAX_SHARD_BYTES", 100)
    with pytest.raises(ShardError, match="at most 100"):
        decode_shard(b"x" * 101)


@given(st.binary(max_size=200))
def test_arbitrary_bytes_raise_nothing_but_shard_errors(content: bytes) -> None:
    with pytest.raises(ShardError):
        decode_shard(content)


@given(st.integers(0, 250), st.integers(0, 255))
def test_a_damaged_shard_decodes_or_raises_a_shard_error(position: int, value: int) -> None:
    content = bytearray(encode_shard(pictures(1), np.array([1])))
    content[position % len(content)] = value
    try:
        images, _ = decode_shard(bytes(content))
    except ShardError:
        return
    assert images.dtype == np.uint8
