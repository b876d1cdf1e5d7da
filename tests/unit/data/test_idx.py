from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from data.errors import IdxError, SourceMissingError
from data.fashion_mnist_source import load_split
from data.idx import read_idx

HEADER = struct.pack(">BBBB2I", 0, 0, 8, 2, 2, 3)


def test_plain_and_compressed_files_hold_the_same_array(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(HEADER + bytes(range(6)))
    (tmp_path / "a.gz").write_bytes(gzip.compress(HEADER + bytes(range(6))))
    for name in ("a", "a.gz"):
        assert read_idx(tmp_path / name, rank=2).tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0\0\x08",
        b"PNG" + bytes(20),
        HEADER + bytes(5),
        HEADER + bytes(7),
        b"\0\0\x0d\x02" + HEADER[4:] + bytes(24),
        b"\0\0\x08\x01" + HEADER[4:8] + bytes(2),
    ],
)
def test_anything_else_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(IdxError):
        read_idx(tmp_path / "a", rank=2)


def test_a_truncated_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.gz").write_bytes(gzip.compress(HEADER + bytes(6))[:-4])
    with pytest.raises(IdxError, match="cannot read"):
        read_idx(tmp_path / "a.gz", rank=2)


def test_missing_files_say_where_they_come_from(tmp_path: Path) -> None:
    with pytest.raises(SourceMissingError) as caught:
        load_split("train", tmp_path)
    assert "dataset-fashion-mnist" in caught.value.hint


def test_a_split_is_read_from_its_two_files(tmp_path: Path) -> None:
    images = struct.pack(">BBBB3I", 0, 0, 8, 3, 2, 28, 28) + bytes(2 * 784)
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(images)
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(struct.pack(">BBBBI", 0, 0, 8, 1, 2) + bytes([3, 9]))
    split = load_split("test", tmp_path)
    assert split.images.shape == (2, 28, 28, 1)
    assert split.labels.dtype == np.int64
    assert split.labels.tolist() == [3, 9]
