"""A recording is read within bounds: what unfolds to more than it says it holds is refused before it is in memory."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import tracemalloc
from pathlib import Path

import pytest

from bus.errors import MalformedRecordingError
from bus.recording import lines
from bus.recording.files import load_recording
from bus.recording.lines import numbered_lines
from tests.conftest import SMALL_RUN

LIMIT = 1_000


def object_line(data: bytes, claimed: int | None = None) -> bytes:
    sha256 = hashlib.sha256(data).hexdigest()
    ref = {"name": f"sha256-{sha256}", "size": len(data) if claimed is None else claimed, "sha256": sha256}
    return json.dumps({"ref": ref, "base64": base64.b64encode(data).decode()}).encode() + b"\n"


def read(folder: Path, *some: bytes) -> list[bytes]:
    path = folder / "run.jsonl.gz"
    path.write_bytes(gzip.compress(b"".join(some)))
    return [line for _, line in numbered_lines(path)]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "PLAIN_LINE", LIMIT)


@pytest.mark.usefixtures("small")
def test_a_line_may_be_as_long_as_the_limit_and_no_longer(tmp_path: Path) -> None:
    longest = b"x" * (LIMIT - 1) + b"\n"
    assert read(tmp_path, longest) == [longest]
    with pytest.raises(MalformedRecordingError, match="line 2: it is larger than 1000 bytes, and is no object"):
        read(tmp_path, longest, b"x" + longest)


@pytest.mark.usefixtures("small")
def test_an_object_may_be_longer_and_only_by_what_it_says(tmp_path: Path) -> None:
    data = b"\x01" * 3 * LIMIT
    assert read(tmp_path, object_line(data)) == [object_line(data)]
    with pytest.raises(MalformedRecordingError, match="which the object of 2900 bytes may have"):
        read(tmp_path, object_line(data, claimed=len(data) - 100))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(("name", "over"), [("MAX_LINE", 0), ("MAX_LINE", 1), ("MAX_TOTAL", 0), ("MAX_TOTAL", 1)])
def test_the_largest_line_and_the_largest_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, over: int
) -> None:
    line = object_line(bytes(3 * LIMIT))
    monkeypatch.setattr(lines, name, len(line) - over)
    if over:
        with pytest.raises(MalformedRecordingError, match="it is larger than"):
            read(tmp_path, line)
    else:
        assert read(tmp_path, line) == [line]


def test_a_line_that_unfolds_without_end_costs_little(tmp_path: Path) -> None:
    path = tmp_path / "bomb.jsonl.gz"
    header = gzip.decompress(SMALL_RUN.read_bytes()).splitlines(keepends=True)[0]
    with gzip.open(path, "wb", 1) as file:
        file.write(header)
        for _ in range(64):
            file.write(b" " * (1 << 20))
    tracemalloc.start()
    try:
        with pytest.raises(MalformedRecordingError, match="line 2: it is larger than"):
            load_recording(path)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
