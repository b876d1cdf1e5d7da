"""What killed processes leave on the disk is removed by whoever starts later, and nothing else is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from bus.process.files import remove_half_written, write_atomically, write_private
from bus.process.folders import remove_left_behind, temporary_folder

HOLDER = """
import sys
from bus.process.folders import temporary_folder
with temporary_folder("test") as folder:
    (folder / "file").write_bytes(b"x")
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


def test_a_killed_processs_folder_is_removed_at_the_next_start_and_a_living_ones_is_not(temporary: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        folder = Path(holder.stdout.readline().strip())
        foreign, elsewhere = temporary / "other-tool-x", temporary / "precious"
        for one in (foreign, elsewhere):
            one.mkdir()
        (temporary / "fedbus-tmp-link").symlink_to(elsewhere)
        (temporary / "fedbus-tmp-file").write_text("no folder")
        assert remove_left_behind() == 0
        with temporary_folder("other") as mine:
            assert remove_left_behind() == 0
            assert folder.is_dir()
            assert mine.is_dir()
        assert not mine.exists()
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    assert (folder / "file").exists()
    with temporary_folder("next") as mine:
        assert not folder.exists()
    assert foreign.is_dir()
    assert elsewhere.is_dir()


def test_a_half_written_file_goes_when_its_writer_is_dead(tmp_path: Path) -> None:
    writer = subprocess.Popen([sys.executable, "-c", "pass"])
    writer.wait()
    stale = tmp_path / f".lease.json.{writer.pid}.tmp"
    earlier = tmp_path / f".lease.json.{os.getpid()}.tmp"
    living = [tmp_path / f".lease.json.{os.getppid()}.tmp", tmp_path / f".url.{os.getpid()}.tmp"]
    others = [tmp_path / "lease.json", tmp_path / ".hidden.tmp", tmp_path / f"{writer.pid}.tmp"]
    for path in (stale, earlier, *living, *others):
        path.write_text("x")
    # A process before this one had the same id, as in a container.
    os.utime(earlier, (1, 1))
    remove_half_written(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([*living, *others])


def test_what_is_written_whole_leaves_nothing_beside_it(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a", b"1")
    write_private(tmp_path / "b", "2")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
