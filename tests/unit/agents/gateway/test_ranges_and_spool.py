"""The Range header, and the spool that keeps leases and bytes for the next process."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from agents.core.exchange.leases import Lease
from agents.core.exchange.messages import Pong, ProtocolError
from agents.gateway.objects import UnsatisfiableRangeError, parse_range
from agents.gateway.outbox import CAPACITY, Farewell, Outbox
from agents.gateway.spool import Spool
from tests.unit.agents.core.exchange.test_leases import record

BYTES = bytes(range(100))
DIGEST = hashlib.sha256(BYTES).hexdigest()


@pytest.mark.parametrize(
    ("header", "part"),
    [
        ("bytes=0-0", (0, 1)),
        ("bytes=9-9", (9, 10)),
        ("bytes=3-", (3, 10)),
        ("bytes=-4", (6, 10)),
        ("bytes=-40", (0, 10)),
        ("bytes=2-99", (2, 10)),
        (None, None),
        ("", None),
        ("bytes=-", None),
        ("bytes=5-4", None),
        ("bytes=0-1,3-4", None),
        ("items=0-1", None),
        ("bytes=x-y", None),
    ],
)
def test_a_range_is_understood_or_everything_is_served(header: str | None, part: tuple[int, int] | None) -> None:
    assert parse_range(header, 10) == part


@pytest.mark.parametrize("header", ["bytes=10-", "bytes=10-11", "bytes=-0"])
def test_a_range_without_a_byte_cannot_be_satisfied(header: str) -> None:
    with pytest.raises(UnsatisfiableRangeError):
        parse_range(header, 10)


async def test_bytes_and_leases_are_there_for_the_next_process(tmp_path: Path) -> None:
    lease = Lease(record())
    first = Spool(tmp_path)
    first.keep(lease)
    upload = first.upload(lease, 1, len(BYTES), DIGEST)
    await upload.open()
    assert await upload.write(0, memoryview(BYTES)[:60]) == 60
    upload.close()

    second = Spool(tmp_path)
    assert second.load() == [lease.record]
    again = second.upload(lease, 9, len(BYTES), DIGEST)
    await again.open()
    assert again.progress.offset == 60
    await again.write(60, memoryview(BYTES)[60:])
    again.close()
    assert (again.progress.complete, again.bytes().tobytes()) == (True, BYTES)


async def test_bytes_of_another_digest_are_not_gone_on_with(tmp_path: Path) -> None:
    lease, spool = Lease(record()), Spool(tmp_path)
    spool.keep(lease)
    upload = spool.upload(lease, 1, 100, DIGEST)
    await upload.open()
    await upload.write(0, memoryview(BYTES)[:60])
    upload.close()
    other = spool.upload(lease, 2, 100, "0" * 64)
    await other.open()
    other.close()
    assert (other.progress.offset, upload.path.exists()) == (0, False)


async def test_a_refused_chunk_leaves_the_bytes_as_they_were(tmp_path: Path) -> None:
    lease, spool = Lease(record()), Spool(tmp_path)
    spool.keep(lease)
    upload = spool.upload(lease, 1, 10, DIGEST)
    await upload.open()
    await upload.write(0, memoryview(BYTES)[:5])
    for offset, length in ((4, 1), (6, 1), (5, 6)):
        with pytest.raises(ProtocolError):
            await upload.write(offset, memoryview(BYTES)[:length])
    upload.close()
    assert (upload.progress.offset, upload.path.read_bytes()) == (5, BYTES[:5])


async def test_more_bytes_than_are_announced_now_are_not_gone_on_with(tmp_path: Path) -> None:
    lease, spool = Lease(record()), Spool(tmp_path)
    spool.keep(lease)
    upload = spool.upload(lease, 1, 60, DIGEST)
    upload.path.write_bytes(BYTES)
    await upload.open()
    upload.close()
    assert (upload.progress.offset, upload.path.read_bytes()) == (0, b"")


def test_a_dropped_lease_and_a_damaged_one_are_not_loaded(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    kept, dropped, damaged = (Lease(record(user=user)) for user in ("u1", "u2", "u3"))
    for lease in (kept, dropped, damaged):
        spool.keep(lease)
    spool.drop(dropped)
    next((tmp_path / damaged.id).iterdir()).write_text("{")
    assert spool.load() == [kept.record]
    assert [path.name for path in tmp_path.iterdir()] == [kept.id]


async def test_a_client_that_does_not_read_is_dropped_when_its_queue_is_full() -> None:
    outbox = Outbox()
    for _ in range(CAPACITY):
        outbox.say(Pong())
    assert await outbox.next() == Pong()
    outbox.say(Pong())
    outbox.say(Pong())
    while not isinstance(said := await outbox.next(), Farewell):
        assert said == Pong()
    assert said.code == 1008
