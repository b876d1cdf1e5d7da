import asyncio
import contextlib
import gc
import hashlib
import os
import tracemalloc
from pathlib import Path

import pytest
from nats.js import JetStreamContext

from bus.broker.direct_get import read_stored
from bus.broker.server import EmbeddedServer, embedded_server
from bus.broker.topology import OBJECT_STREAM
from bus.client import Bus
from bus.errors import ObjectCorruptError, ObjectMissingError, ObjectTimeoutError
from bus.objects.bucket import CHUNK, meta_subject
from bus.objects.reader import SMALL
from bus.objects.store import ObjectStore
from bus.words.values import Ref
from tests.broker.bus.conftest import plant
from tests.conftest import wait_for

SIZES = [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 20 * CHUNK + 7]


def unknown(data: bytes = b"never stored") -> Ref:
    digest = hashlib.sha256(data).hexdigest()
    return Ref(name=f"sha256-{digest}", size=len(data), sha256=digest)


async def chunk_subject(raw: JetStreamContext, ref: Ref) -> str:
    info = await (await raw.object_store("objects")).get_info(ref.name)
    return f"$O.objects.C.{info.nuid}"


async def chunk_count(raw: JetStreamContext) -> int:
    subjects = (await raw.stream_info(OBJECT_STREAM, subjects_filter="$O.objects.C.>")).state.subjects
    return sum((subjects or {}).values())


@pytest.mark.parametrize("size", SIZES)
async def test_an_object_comes_back_as_it_was_also_through_the_stock_client(
    bus: Bus, raw: JetStreamContext, size: int
) -> None:
    data = os.urandom(size)
    ref = await bus.objects.put(data, media_type="application/x-test")
    assert ref == unknown(data).model_copy(update={"media_type": "application/x-test"})
    assert await bus.objects.get(ref) == data
    assert await bus.objects.get(ref.sha256) == data
    assert await bus.objects.info(ref.name) == ref
    stock = await (await raw.object_store("objects")).get(ref.name)
    assert stock.data == data
    assert stock.info.size == size


async def test_an_object_of_the_stock_client_can_be_read(bus: Bus, raw: JetStreamContext) -> None:
    data = os.urandom(300_000)
    await plant(raw, unknown(data).name, data)
    assert await bus.objects.get(unknown(data)) == data
    assert (
        b"".join([part async for part in bus.objects.stream(unknown(data), start=140_000, end=280_000)])
        == (data[140_000:280_000])
    )


async def test_the_same_bytes_are_not_uploaded_again(bus: Bus, raw: JetStreamContext) -> None:
    data = os.urandom(2 * CHUNK)
    ref = await bus.objects.put(data)
    before = (await raw.stream_info(OBJECT_STREAM)).state.last_seq
    assert await bus.objects.put(memoryview(data)) == ref
    assert (await raw.stream_info(OBJECT_STREAM)).state.last_seq == before


async def test_of_two_uploads_of_the_same_bytes_at_once_one_is_collected(
    bus: Bus, nats: EmbeddedServer, raw: JetStreamContext
) -> None:
    data = os.urandom(3 * CHUNK)
    before = await chunk_count(raw)
    async with Bus.connect(nats.settings, name="other", wait_s=10) as other:
        refs = await asyncio.gather(bus.objects.put(data), other.objects.put(data))
    assert refs[0] == refs[1]
    await bus.objects.collect_orphans(0)
    assert await bus.objects.get(refs[0]) == data
    assert await chunk_count(raw) == before + 3


@pytest.mark.parametrize(("start", "end"), [(0, 10), (5, 5), (CHUNK - 1, CHUNK + 1), (7 * CHUNK, 7 * CHUNK + 9)])
async def test_a_range_is_exactly_that_part_even_when_chunks_of_others_lie_between(
    bus: Bus, start: int, end: int
) -> None:
    data, noise = os.urandom(9 * CHUNK + 5), [os.urandom(CHUNK * 4) for _ in range(3)]
    ref, *_ = await asyncio.gather(bus.objects.put(data), *[bus.objects.put(one) for one in noise])
    assert b"".join([part async for part in bus.objects.stream(ref, start=start, end=end)]) == data[start:end]
    assert b"".join([part async for part in bus.objects.stream(ref, start=start)]) == data[start:]


async def test_a_range_outside_the_object_is_refused(bus: Bus) -> None:
    ref = await bus.objects.put(b"0123456789")
    for start, end in [(0, 11), (-1, 3), (6, 5)]:
        with pytest.raises(ValueError, match="of an object of 10"):
            await anext(bus.objects.stream(ref, start=start, end=end))


async def test_an_object_that_was_never_stored_is_missing(bus: Bus) -> None:
    assert await bus.objects.info(unknown().name) is None
    for ref in (unknown(), unknown().sha256, unknown().model_copy(update={"bucket": "elsewhere"})):
        with pytest.raises(ObjectMissingError):
            await bus.objects.get(ref)


async def test_an_object_whose_chunks_are_gone_is_missing_until_it_is_put_again(
    bus: Bus, raw: JetStreamContext
) -> None:
    data = os.urandom(2 * CHUNK)
    ref = await bus.objects.put(data)
    await raw.purge_stream(OBJECT_STREAM, subject=await chunk_subject(raw, ref))
    with pytest.raises(ObjectMissingError):
        await bus.objects.get(ref)
    await bus.objects.put(data)
    assert await bus.objects.get(ref) == data


@pytest.mark.parametrize("lost", [0, 1, 2])
async def test_an_object_that_lost_one_chunk_is_corrupt(bus: Bus, raw: JetStreamContext, lost: int) -> None:
    ref = await bus.objects.put(os.urandom(3 * CHUNK))
    last = await raw.get_last_msg(OBJECT_STREAM, await chunk_subject(raw, ref))
    assert last.seq is not None
    await raw.delete_msg(OBJECT_STREAM, last.seq - 2 + lost)
    with pytest.raises(ObjectCorruptError):
        await bus.objects.get(ref)


async def test_bytes_with_another_digest_or_size_are_corrupt_and_are_not_handed_out_whole(
    bus: Bus, raw: JetStreamContext, tmp_path: Path
) -> None:
    stored, wanted = os.urandom(CHUNK + 10), unknown(os.urandom(CHUNK + 10))
    await plant(raw, wanted.name, stored)
    seen = 0

    async def read() -> None:
        nonlocal seen
        async for part in bus.objects.stream(wanted):
            seen += len(part)

    with pytest.raises(ObjectCorruptError):
        await read()
    assert seen < wanted.size
    target = tmp_path / "file"
    with pytest.raises(ObjectCorruptError):
        await bus.objects.fetch_to(wanted, target)
    assert list(tmp_path.iterdir()) == []
    longer = wanted.model_copy(update={"size": wanted.size + 1})
    with pytest.raises(ObjectCorruptError, match="its reference says"):
        await bus.objects.get(longer)


async def test_a_file_goes_in_and_out_in_constant_memory(bus: Bus, tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    data = os.urandom(48 * CHUNK)
    source.write_bytes(data)
    tracemalloc.start()
    try:
        ref = await bus.objects.put_file(source, "application/x-test")
        await bus.objects.fetch_to(ref, target)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert target.read_bytes() == data
    assert sorted(one.name for one in tmp_path.iterdir()) == ["in", "out"]
    # 16 chunks asked for, and as much again in the client's buffers, of the 48.
    assert peak < 34 * CHUNK


@pytest.mark.parametrize("size", SIZES)
async def test_bytes_of_an_announced_digest_are_put_and_bytes_of_another_are_not(
    bus: Bus, raw: JetStreamContext, tmp_path: Path, size: int
) -> None:
    data, path, before = os.urandom(size), tmp_path / "file", await chunk_count(raw)
    path.write_bytes(data)
    wrong = unknown(os.urandom(9)).sha256
    for put in (bus.objects.put_file(path, sha256=wrong), bus.objects.put(data, sha256=wrong)):
        with pytest.raises(ObjectCorruptError, match=wrong):
            await put
    assert await bus.objects.info(f"sha256-{wrong}") is None
    assert await chunk_count(raw) == before
    ref = unknown(data)
    assert await bus.objects.put_file(path, sha256=ref.sha256) == ref
    assert await bus.objects.put(data, sha256=ref.sha256) == ref
    assert await bus.objects.get(ref) == data


async def test_a_file_that_names_an_object_that_is_there_must_be_that_object(bus: Bus, tmp_path: Path) -> None:
    path = tmp_path / "file"
    ref = await bus.objects.put(os.urandom(CHUNK + 1))
    path.write_bytes(os.urandom(CHUNK + 1))
    with pytest.raises(ObjectCorruptError, match=ref.sha256):
        await bus.objects.put_file(path, sha256=ref.sha256)


@pytest.mark.parametrize("announced", [True, False])
async def test_a_file_that_changes_while_it_is_put_becomes_no_object(
    bus: Bus, raw: JetStreamContext, tmp_path: Path, announced: bool
) -> None:
    path, data = tmp_path / "file", os.urandom(40 * CHUNK)
    path.write_bytes(data)
    ref, before = unknown(data), await chunk_count(raw)
    putting = asyncio.create_task(bus.objects.put_file(path, sha256=ref.sha256 if announced else None))
    await wait_for(lambda: _more_than(raw, before))
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(bytes([data[-1] ^ 1]))
    with pytest.raises(ObjectCorruptError, match=ref.sha256):
        await putting
    assert await bus.objects.info(ref.name) is None
    await bus.objects.collect_orphans(0)
    assert await chunk_count(raw) == before


@pytest.mark.parametrize("size", [0, 1, SMALL, SMALL + 1, 3 * SMALL])
async def test_local_bytes_stay_as_long_as_they_are_used_and_leave_no_file(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    data, descriptors = os.urandom(size), len(os.listdir("/proc/self/fd"))
    async with bus.objects.local(await bus.objects.put(data)) as found:
        assert list(tmp_path.iterdir()) == []
    assert bytes(found) == data
    del found
    assert len(os.listdir("/proc/self/fd")) <= descriptors


async def test_local_bytes_with_another_digest_are_corrupt(bus: Bus, raw: JetStreamContext) -> None:
    wanted = unknown(os.urandom(SMALL + 10))
    await plant(raw, wanted.name, os.urandom(wanted.size))
    with pytest.raises(ObjectCorruptError):
        async with bus.objects.local(wanted):
            pass


async def test_a_fetch_cancelled_at_any_of_its_steps_leaves_no_file_and_none_open(bus: Bus, tmp_path: Path) -> None:
    ref, descriptors = await bus.objects.put(os.urandom(3 * CHUNK)), os.listdir("/proc/self/fd")
    for steps in range(1, 40):
        fetch = asyncio.create_task(bus.objects.fetch_to(ref, tmp_path / "out"))
        for _ in range(steps):
            await asyncio.sleep(0)
        if fetch.cancel():
            with pytest.raises(asyncio.CancelledError):
                await fetch
    await asyncio.get_running_loop().shutdown_default_executor()
    gc.collect()
    assert [path.name for path in tmp_path.iterdir() if path.name != "out"] == []
    assert len(os.listdir("/proc/self/fd")) <= len(descriptors)


async def test_chunks_that_stop_arriving_end_in_a_timeout(
    bus: Bus, nats: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = await bus.objects.put(os.urandom(CHUNK))
    impatient = ObjectStore(bus.connection, bus.pipeline, stall_s=0.2)

    def nobody_answers(link: object, stream: str, *args: object, **options: object) -> object:
        return read_stored(link, "NOWHERE", *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("bus.objects.bucket.read_stored", nobody_answers)
    with pytest.raises(ObjectTimeoutError):
        await asyncio.wait_for(impatient.get(ref), 10)


async def test_the_chunks_of_a_cancelled_put_are_collected(bus: Bus, raw: JetStreamContext) -> None:
    before = await chunk_count(raw)
    putting = asyncio.create_task(bus.objects.put(os.urandom(64 * CHUNK)))
    await wait_for(lambda: _more_than(raw, before))
    putting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await putting
    await bus.objects.collect_orphans(0)
    assert await chunk_count(raw) == before


async def _more_than(raw: JetStreamContext, count: int) -> bool:
    return await chunk_count(raw) > count


async def test_orphans_are_collected_and_objects_are_not(bus: Bus, raw: JetStreamContext) -> None:
    ref = await bus.objects.put(os.urandom(10))
    await bus.objects.collect_orphans(0)
    await raw.publish("$O.objects.C.orphan", b"left by a killed upload")
    assert await bus.objects.collect_orphans(3600) == 0
    assert await bus.objects.collect_orphans(0) == 1
    assert await bus.objects.collect_orphans(0) == 0
    assert len(await bus.objects.get(ref)) == 10


async def test_a_meta_message_that_nobody_can_read_is_replaced_by_the_next_put(bus: Bus, raw: JetStreamContext) -> None:
    data = os.urandom(10)
    await raw.publish(meta_subject(unknown(data).name), b"{")
    with pytest.raises(ObjectMissingError):
        await bus.objects.get(unknown(data))
    assert await bus.objects.get(await bus.objects.put(data)) == data


async def test_reading_and_writing_continue_after_the_broker_came_back(tmp_path: Path) -> None:
    data = os.urandom(40 * CHUNK)
    async with contextlib.AsyncExitStack() as stack:
        async with embedded_server(tmp_path / "store") as first:
            bus = await stack.enter_async_context(Bus.connect(first.settings, name="test", wait_s=10))
            ref = await bus.objects.put(data)
            stream = bus.objects.stream(ref)
            parts = [await anext(stream)]
            first.process.kill()
            await first.wait()
        putting = asyncio.create_task(bus.objects.put(data[1:]))
        async with embedded_server(tmp_path / "store", port=first.port):
            parts += [part async for part in stream]
            second = await asyncio.wait_for(putting, 20)
            assert await bus.objects.get(second) == data[1:]
            await stack.pop_all().aclose()
    assert b"".join(parts) == data
