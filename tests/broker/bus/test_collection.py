"""What an event leads to is never collected, however the graph looks and whatever happens meanwhile; the rest goes."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import random
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from nats.js import JetStreamContext
from nats.js.errors import ServerError

from agents.words.events import (
    ImagesLabelled,
    ModelEvaluated,
    RoundPlanned,
    RoundStarted,
    RunFinished,
    RunStarted,
    Score,
)
from agents.words.run_config import RunDataset, TaskSpec, UserShard
from bus.broker.server import EmbeddedServer, embedded_server
from bus.broker.topology import OBJECT_STREAM
from bus.client import Bus
from bus.errors import ObjectCorruptError, ObjectMissingError
from bus.objects.bucket import meta_subject
from bus.objects.collection import Collector
from bus.objects.store import FRESH_S, ObjectStore
from bus.recording.files import record
from bus.words.values import Ref
from tests.broker.bus.conftest import nats_client, plant
from tests.builders import config, labelled, planned, run_started

JSON = "application/json"


@pytest_asyncio.fixture
async def nats(tmp_path: Path) -> AsyncIterator[EmbeddedServer]:
    """A broker of the test's own: other tests' objects would be collected."""
    async with embedded_server(tmp_path / "nats") as server:
        yield server


@pytest_asyncio.fixture
async def raw(nats: EmbeddedServer) -> AsyncIterator[JetStreamContext]:
    client = nats_client()
    await client.connect(nats.url, token=nats.token)
    yield client.jetstream()
    await client.close()


class Shop:
    """Puts random objects and remembers which of them events lead to."""

    def __init__(self, bus: Bus, chance: random.Random) -> None:
        self.bus = bus
        self.chance = chance
        self.all: set[str] = set()
        self.needed: set[str] = set()

    async def put(self, body: bytes | None = None, media_type: str = "x/y") -> Ref:
        data = self.chance.randbytes(self.chance.randrange(1, 2_000)) if body is None else body
        ref = await self.bus.objects.put(data, media_type=media_type)
        self.all.add(ref.sha256)
        return ref

    def some(self, refs: list[Ref]) -> Ref:
        """One that may be named from several places, or a new one."""
        return self.chance.choice(refs)

    async def dataset(self, refs: list[Ref]) -> tuple[Ref, set[str]]:
        users = tuple(UserShard(user=f"u{number}", shard=self.some(refs)) for number in range(3))
        truth = self.some(refs) if self.chance.random() < 0.5 else None
        body = RunDataset(classes=("a", "b"), users=users, held_out=self.some(refs), truth=truth)
        # Whoever puts a document may forget to say that it is JSON.
        ref = await self.put(body.model_dump_json().encode(), self.chance.choice([JSON, "application/octet-stream"]))
        names = {one.shard.sha256 for one in users} | {body.held_out.sha256} | ({truth.sha256} if truth else set())
        return ref, names | {ref.sha256}

    async def manifest(self, refs: list[Ref]) -> tuple[Ref, set[str]]:
        files = {f"f{number}": self.some(refs) for number in range(3)}
        rows = {name: {"path": name, **one.model_dump(exclude={"name", "bucket"})} for name, one in files.items()}
        ref = await self.put(json.dumps({"files": rows}).encode(), JSON)
        return ref, {one.sha256 for one in files.values()} | {ref.sha256}

    async def spec(self, run: str, refs: list[Ref], artifacts: Ref) -> tuple[Ref, set[str]]:
        started = config()
        body = TaskSpec(
            run=run,
            round=1,
            artifacts=artifacts,
            base_model=self.some(refs),
            optimizer=self.some(refs),
            learning_rate=0.1,
            epochs=1,
            augmentations=1,
            augmentation=started.training.augmentation,
            encoding="float32",
        )
        ref = await self.put(body.model_dump_json().encode(), JSON)
        return ref, {body.base_model.sha256, body.optimizer.sha256, ref.sha256}

    async def run(self, name: str) -> None:
        """A run of which a random part is said on the bus; all of its objects are put."""
        refs = [await self.put() for _ in range(8)]
        dataset, of_dataset = await self.dataset(refs)
        artifacts, of_artifacts = await self.manifest(refs)
        spec, of_spec = await self.spec(name, refs, artifacts)
        base, shard, details, final = (self.some(refs) for _ in range(4))
        started = run_started(config()).model_copy(
            update={"run": name, "dataset": dataset, "artifacts": artifacts, "base_model": base}
        )
        plan = planned(1, 1).model_copy(update={"run": name, "spec": spec, "base_model": base})
        fair = Score(accuracy=0.5, loss=1.0)
        said = [
            (started, of_dataset | of_artifacts | {base.sha256}),
            (labelled("u0").model_copy(update={"run": name, "shard": shard}), {shard.sha256}),
            (RoundStarted(run=name, round=1, base_model=base), {base.sha256}),
            (plan, of_spec | of_artifacts | {base.sha256}),
            (
                ModelEvaluated(
                    run=name, round=1, model=base.sha256, images=1, base=fair, updated=fair, details=details
                ),
                {base.sha256, details.sha256},
            ),
            (RunFinished(run=name, status="completed", rounds=1, final_model=final), {final.sha256}),
        ]
        kinds = (RunStarted, ImagesLabelled, RoundStarted, RoundPlanned, ModelEvaluated, RunFinished)
        assert tuple(type(data) for data, _ in said) == kinds
        for data, needed in said:
            if self.chance.random() < 0.6:
                await self.bus.publish(type(data).model_validate(data.model_dump()))
                self.needed |= needed


async def collected(bus: Bus, older_than_s: float = 0, *, dry_run: bool = False) -> set[str]:
    async with contextlib.aclosing(bus.expired_objects(older_than_s, dry_run=dry_run)) as refs:
        return {ref.sha256 async for ref in refs}


async def there(bus: Bus, digests: set[str]) -> set[str]:
    """Which of these objects can be read, whole."""
    found = set()
    for digest in digests:
        with contextlib.suppress(ObjectMissingError):
            await bus.objects.get(digest)
            found.add(digest)
    return found


@pytest.mark.parametrize("seed", range(6))
async def test_what_an_event_leads_to_stays_and_everything_else_that_is_old_goes(bus: Bus, seed: int) -> None:
    shop = Shop(bus, random.Random(seed))
    for number in range(4):
        await shop.run(f"run-{number}")
    assert shop.needed < shop.all
    assert await collected(bus, 60) == set()
    assert await collected(bus, dry_run=True) == shop.all - shop.needed
    assert await there(bus, shop.all) == shop.all
    assert await collected(bus) == shop.all - shop.needed
    assert await there(bus, shop.all) == shop.needed
    assert await collected(bus) == set()


async def test_a_whole_run_can_still_be_recorded(bus: Bus, tmp_path: Path) -> None:
    shop = Shop(bus, random.Random(0))
    shop.chance.random = lambda: 0.0  # type: ignore[method-assign]  # everything is said
    await shop.run("shop")
    await collected(bus)
    counts = await record(bus, "shop", tmp_path / "shop.jsonl.gz", include="all")
    assert counts.objects > 5


async def test_an_object_that_becomes_needed_meanwhile_stays(bus: Bus) -> None:
    ref, document = await bus.objects.put(b"image"), await bus.objects.put(b"{}", media_type=JSON)
    collector = Collector(bus.connection, bus.objects)
    entries = await collector.expired(0)
    assert len(entries) == 2
    dataset = json.dumps({"held_out": ref.sha256}).encode()
    needing = await bus.objects.put(dataset, media_type=JSON)
    await bus.publish(run_started(config()).model_copy(update={"dataset": needing, "artifacts": document}))
    assert [await collector.delete(entry) for entry in entries] == [False, False]
    assert await there(bus, {ref.sha256, document.sha256}) == {ref.sha256, document.sha256}


async def test_an_object_that_is_put_again_meanwhile_stays(bus: Bus) -> None:
    """Its event comes later, and the put that found the bytes there has moved none."""
    always = ObjectStore(bus.connection, bus.pipeline, fresh_s=0)
    ref = await bus.objects.put(b"image")
    collector = Collector(bus.connection, bus.objects)
    (entry,) = await collector.expired(0)
    before = await bus.objects.bucket.find(ref.name)
    assert await always.put(b"image") == ref
    after = await bus.objects.bucket.find(ref.name)
    assert before[0] is not None
    assert after[0] is not None
    assert (after[0].meta.nuid, after[1] > before[1]) == (before[0].meta.nuid, True)
    assert not await collector.delete(entry)
    assert await bus.objects.get(ref) == b"image"


@pytest.mark.parametrize(("fresh_s", "moves"), [(0.0, True), (FRESH_S, False)])
async def test_only_what_is_not_fresh_any_more_is_made_new(bus: Bus, fresh_s: float, moves: bool) -> None:
    store = ObjectStore(bus.connection, bus.pipeline, fresh_s=fresh_s)
    ref = await store.put(b"image", media_type="image/x")
    _, before = await store.bucket.find(ref.name)
    await store.put(b"image")
    _, after = await store.bucket.find(ref.name)
    assert (after > before) is moves
    assert await store.info(ref.name) == ref


async def test_nothing_is_left_of_what_was_deleted_and_it_can_be_put_again(bus: Bus, raw: JetStreamContext) -> None:
    data = os.urandom(1_500_000)
    ref = await bus.objects.put(data)
    assert await collected(bus) == {ref.sha256}
    assert (await raw.stream_info(OBJECT_STREAM)).state.messages == 0
    with pytest.raises(ObjectMissingError):
        await bus.objects.get(ref)
    assert await bus.objects.put(data) == ref
    assert await bus.objects.get(ref) == data


async def test_putting_and_collecting_at_once_leaves_an_object_whole_or_not_at_all(
    bus: Bus, raw: JetStreamContext
) -> None:
    """With an age of nothing, so that they meet as often as possible."""
    data = os.urandom(700_000)
    always = ObjectStore(bus.connection, bus.pipeline, fresh_s=0)
    digest = hashlib.sha256(data).hexdigest()
    outcomes = set()
    for _ in range(40):
        await asyncio.gather(always.put(data), always.put(data), collected(bus))
        outcomes.add(bool(await there(bus, {digest})))
    assert True in outcomes
    await always.put(data)
    assert await there(bus, {digest}) == {digest}
    await bus.objects.collect_orphans(0)
    chunks = (await raw.stream_info(OBJECT_STREAM, subjects_filter="$O.objects.C.>")).state.subjects
    assert list((chunks or {}).values()) == [2]


async def test_a_deletion_that_was_interrupted_is_finished_by_the_next(bus: Bus, raw: JetStreamContext) -> None:
    ref = await bus.objects.put(b"image")
    entry, _ = await bus.objects.bucket.find(ref.name)
    assert entry is not None
    gone = json.dumps({"name": ref.name, "nuid": entry.meta.nuid, "bucket": "objects", "deleted": True}).encode()
    await raw.publish(meta_subject(ref.name), gone)
    assert await bus.objects.get(ref) == b"image"
    assert await collected(bus) == {ref.sha256}
    assert (await raw.stream_info(OBJECT_STREAM)).state.messages == 0


async def test_what_is_deleted_is_noted_where_nobody_takes_it_back(bus: Bus, raw: JetStreamContext) -> None:
    ref = await bus.objects.put(b"image")
    await raw.publish("$O.objects.C.orphan", b"left by a killed upload")
    assert await collected(bus) == {ref.sha256}
    await bus.objects.collect_orphans(0)
    notes = [json.loads((await raw.get_msg("DELETIONS", sequence)).data or b"") for sequence in (1, 2)]
    assert [(one["object"], one["reason"]) for one in notes] == [
        (ref.name, "no event leads to it"),
        ("", "an upload that was never finished"),
    ]
    with pytest.raises(ServerError):
        await raw.purge_stream("DELETIONS")


@pytest.mark.parametrize("escaped", [False, True])
async def test_what_an_event_of_a_later_version_names_stays(bus: Bus, raw: JetStreamContext, escaped: bool) -> None:
    ref = await bus.objects.put(b"image")
    text = "".join(f"\\u{ord(one):04x}" for one in ref.sha256) if escaped else ref.sha256
    await raw.publish("ev.shop.picture.hung", f'{{"type": "picture.hung", "picture": "{text}"}}'.encode())
    assert await collected(bus) == set()


async def test_objects_with_names_of_their_own_are_nobody_elses_business(bus: Bus, raw: JetStreamContext) -> None:
    await plant(raw, "notes", b"mine")
    assert await collected(bus) == set()
    assert (await (await raw.object_store("objects")).get("notes")).data == b"mine"


async def test_nothing_is_deleted_when_nobody_can_tell_what_is_needed(bus: Bus, raw: JetStreamContext) -> None:
    unneeded = await bus.objects.put(b"unneeded")
    document = await bus.objects.put(b'{"one": 1}' * 100_000, media_type=JSON)
    await bus.publish(RoundStarted(run="shop", round=1, base_model=document))
    info = await (await raw.object_store("objects")).get_info(document.name)
    last = await raw.get_last_msg(OBJECT_STREAM, f"$O.objects.C.{info.nuid}")
    assert last.seq is not None
    await raw.delete_msg(OBJECT_STREAM, last.seq)
    with pytest.raises(ObjectCorruptError):
        await collected(bus)
    assert await there(bus, {unneeded.sha256}) == {unneeded.sha256}


async def test_a_document_that_is_gone_needs_nothing(bus: Bus, caplog: pytest.LogCaptureFixture) -> None:
    unneeded = await bus.objects.put(b"unneeded")
    await bus.publish(run_started(config()))
    assert await collected(bus) == {unneeded.sha256}
    assert "not in the store" in caplog.text


async def test_the_command_says_what_it_would_delete_and_refuses_an_age_that_is_too_short(
    nats: EmbeddedServer, bus: Bus
) -> None:
    await bus.objects.put(b"young")
    edge = str(int(2 * FRESH_S))
    code, said = await gc(nats, "--dry-run", "--older-than", edge)
    assert (code, said) == (0, "0 objects of 0 bytes and 0 interrupted writes would be deleted\n")
    code, said = await gc(nats)
    assert (code, said) == (0, "0 objects of 0 bytes and 0 interrupted writes deleted\n")
    code, said = await gc(nats, "--older-than", str(int(2 * FRESH_S) - 1))
    assert (code, "--older-than" in said) == (2, True)


async def gc(nats: EmbeddedServer, *arguments: str) -> tuple[int, str]:
    environment = {**os.environ, "NATS_URL": nats.url, "NATS_TOKEN": nats.token}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "agents.cli", "gc", *arguments),
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode is not None
    return process.returncode, output.decode()
