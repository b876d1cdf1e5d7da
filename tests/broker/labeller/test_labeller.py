"""The labeller agent on a real broker: what it says of a run, once, and how a run that it cannot label ends."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest

from agents.cli.run_setup import (
    DEFAULT_HELD_OUT_DATA,
    DEFAULT_USERS_DATA,
    DataMismatchError,
    RunSources,
    start_run,
)
from agents.core.labels.label_file import LabelFile, match_answers
from agents.core.labels.sources import image_digest, simulated_labels
from agents.labeller import service
from agents.labeller.label_file import write_label_file
from agents.labeller.service import serve
from agents.runtime.tasks import background
from agents.words.events import ImagesLabelled, RunFinished, RunStarted
from agents.words.run_config import LabellingSpec, RunDataset
from bus.client import Bus
from bus.words.envelope import Stored
from bus.words.subjects import events_of, events_of_type
from bus.words.values import Ref
from data.dataset import DatasetManifest, ImageEntry, load_dataset, write_dataset
from data.shards import decode_shard, encode_shard
from tests.builders import config
from tests.conftest import wait_for
from tests.unit.agents.labeller.label_server import COMPLETION_TOKENS, PROMPT_TOKENS, LabelServer, label_server


def labelling(users: int, images: int, **spec: object):
    return config(users=users).model_copy(
        update={"images_per_user": images, "labelling": LabellingSpec.model_validate(spec), "seed": 11}
    )


async def labels_of(bus: Bus, run: str) -> dict[str, ImagesLabelled]:
    found = {}
    async with bus.follow(events_of_type("images.labelled", run), live=False) as items:
        async for item in items:
            if isinstance(item, Stored):
                assert isinstance(item.event.data, ImagesLabelled)
                found[item.event.data.user] = item.event.data
    return found


async def all_labelled(bus: Bus, run: str, users: int) -> dict[str, ImagesLabelled] | None:
    found = await labels_of(bus, run)
    return found if len(found) == users else None


async def dataset_of(bus: Bus, started: RunStarted) -> RunDataset:
    return RunDataset.model_validate_json(await bus.objects.get(started.dataset))


async def ended(bus: Bus, run: str) -> RunFinished:
    stored = await wait_for(lambda: bus.find(events_of_type("run.finished", run)))
    assert isinstance(stored.event.data, RunFinished)
    return stored.event.data


async def test_a_hundred_users_get_the_truth_with_seeded_errors(bus: Bus, unique_run: str):
    async with background(serve(bus, asyncio.Event())):
        started = await start_run(bus, unique_run, labelling(100, 20, error_rate=0.05), RunSources())
        found = await wait_for(lambda: all_labelled(bus, unique_run, 100))
    dataset = await dataset_of(bus, started)
    assert dataset.truth is not None
    truth = json.loads(await bus.objects.get(dataset.truth))
    wrong = sum(a != b for user, said in found.items() for a, b in zip(said.labels, truth[user], strict=True))
    assert 60 <= wrong <= 140
    one = dataset.users[7]
    assert found[one.user].shard == one.shard
    assert found[one.user].labels == simulated_labels(truth[one.user], 10, error_rate=0.05, seed=11, user=one.user)
    assert found[one.user].provider == "truth"


@pytest.mark.parametrize("which", ["users", "held_out"])
async def test_a_picture_without_a_label_is_named_before_anything_is_said(
    bus: Bus, unique_run: str, tmp_path: Path, which: str
):
    sample = load_dataset(DEFAULT_USERS_DATA)
    facts = DatasetManifest.model_validate({**sample.manifest.model_dump(), "images": (), "parts": ()})
    entries = [ImageEntry(id=f"{at}", source=f"bags/{at}.png", label="bag" if at % 4 else None) for at in range(40)]
    write_dataset(tmp_path / "some", facts, entries, sample.images[:40])
    sources = RunSources(**{which: tmp_path / "some"})
    with pytest.raises(DataMismatchError, match=r"without one: bags/0\.png, bags/4\.png") as raised:
        await start_run(bus, unique_run, labelling(2, 5), sources)
    assert ("bags/12.png" in raised.value.message) == (which == "held_out")
    assert raised.value.message.endswith("more") == (which == "held_out")
    assert await bus.find(events_of_type("run.started", unique_run)) is None
    if which == "users":
        # Whose labels are asked for need none, and pictures that nobody owns do not matter.
        await start_run(bus, unique_run, labelling(2, 5, provider="openai"), sources)


async def test_users_that_have_labels_keep_them_when_the_event_comes_again(bus: Bus, unique_run: str):
    started = await start_run(bus, unique_run, labelling(4, 3, error_rate=0.0), RunSources())
    user = (await dataset_of(bus, started)).users[2]
    before = ImagesLabelled(run=unique_run, user=user.user, shard=user.shard, labels=(None, 1, 2), provider="by-hand")
    await bus.publish(before)
    async with background(serve(bus, asyncio.Event())):
        found = await wait_for(lambda: all_labelled(bus, unique_run, 4))
    assert found.pop(user.user) == before
    assert {one.provider for one in found.values()} == {"truth"}


async def test_recorded_labels_are_matched_and_what_is_no_class_is_dropped(
    bus: Bus, unique_run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    started = await start_run(bus, unique_run, labelling(2, 3, provider="recorded"), RunSources())
    first, second = (await dataset_of(bus, started)).users
    images, _ = decode_shard(await bus.objects.get(second.shard))
    file = tmp_path / "labels.json"
    by_image = {image_digest(image): said for image, said in zip(images, ("Sneakers", None, "a coat"), strict=True)}
    file.write_text(json.dumps({first.user: ["Bag", "I don't know", None], **by_image}))
    monkeypatch.setenv("FEDBUS_LABELS_FILE", str(file))
    async with background(serve(bus, asyncio.Event())):
        found = await wait_for(lambda: all_labelled(bus, unique_run, 2))
    assert found[first.user].labels == (8, None, None)
    assert [one.reason for one in found[first.user].dropped] == ["unknown", "unknown"]
    assert found[second.user].labels == (7, None, 4)


def label_file(data: Path, out: Path) -> LabelFile:
    """What ``labels run`` leaves about a dataset, whose second image nothing was found for."""
    loaded = load_dataset(data)
    ids = [image.id for image in loaded.manifest.images]
    answers = {id_: loaded.classes[label] for id_, label in zip(ids, loaded.labels, strict=True)}
    file = match_answers({**answers, ids[1]: "zeppelin"}, loaded.classes, threshold=88)
    file.images = dict(zip(ids, map(image_digest, loaded.images), strict=True))
    write_label_file(file, out)
    return file


async def test_the_file_that_labels_run_leaves_is_used_as_it_is(
    bus: Bus, unique_run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "labels.json"
    file = label_file(DEFAULT_USERS_DATA, path)
    file.settle(next(iter(file.images)), "bag")
    write_label_file(file, path)
    monkeypatch.setenv("FEDBUS_LABELS_FILE", str(path))
    async with background(serve(bus, asyncio.Event())):
        started = await start_run(bus, unique_run, labelling(3, 4, provider="recorded"), RunSources())
        found = await wait_for(lambda: all_labelled(bus, unique_run, 3))
    dataset = await dataset_of(bus, started)
    assert dataset.truth is not None
    truth = json.loads(await bus.objects.get(dataset.truth))
    expected = [truth[user.user] for user in dataset.users]
    expected[0][:2] = [dataset.classes.index("bag"), None]
    assert [list(found[user.user].labels) for user in dataset.users] == expected
    (dropped,) = found[dataset.users[0].user].dropped
    assert (dropped.index, dropped.reason, dropped.answer) == (1, "not_a_class", "zeppelin")


async def test_a_label_file_that_does_not_cover_the_users_ends_the_run_and_says_so(
    bus: Bus, unique_run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "labels.json"
    label_file(DEFAULT_HELD_OUT_DATA, path)
    monkeypatch.setenv("FEDBUS_LABELS_FILE", str(path))
    async with background(serve(bus, asyncio.Event())):
        await start_run(bus, unique_run, labelling(2, 3, provider="recorded"), RunSources())
        finished = await ended(bus, unique_run)
    assert finished.status == "failed"
    assert "does not have 3 of the 3 images of user-000" in finished.reason
    assert "fedbus data labels run" in finished.reason


async def test_a_run_without_a_labels_file_fails_with_a_reason_that_says_what_to_set(bus: Bus, unique_run: str):
    async with background(serve(bus, asyncio.Event())):
        await start_run(bus, unique_run, labelling(2, 2, provider="recorded"), RunSources())
        finished = await ended(bus, unique_run)
    assert finished.status == "failed"
    assert "FEDBUS_LABELS_FILE" in finished.reason


async def test_a_malformed_truth_object_ends_its_run_and_the_next_run_is_labelled(bus: Bus, unique_run: str):
    good = await start_run(bus, f"{unique_run}-source", labelling(2, 2), RunSources())
    dataset = await dataset_of(bus, good)
    damaged = dataset.model_copy(update={"truth": await bus.objects.put(b'{"user-000": [99, 0]}')})
    ref = await bus.objects.put(damaged.model_dump_json().encode())
    async with background(serve(bus, asyncio.Event())):
        await bus.publish(good.model_copy(update={"run": unique_run, "dataset": ref}))
        finished = await ended(bus, unique_run)
        await wait_for(lambda: all_labelled(bus, good.run, 2))
    assert "truth" in finished.reason


@pytest.mark.parametrize("hostile", ["many labels", "many images", "no shard", "no truth", "no bytes"])
async def test_a_run_that_cannot_be_labelled_ends_and_the_labeller_goes_on(
    bus: Bus, unique_run: str, hostile: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    good = await start_run(bus, f"{unique_run}-source", labelling(2, 2), RunSources())
    dataset = await dataset_of(bus, good)
    (tmp_path / "labels.json").write_text(json.dumps({"user-000": ["bag"] * 1001, "user-001": ["bag"] * 2}))
    monkeypatch.setenv("FEDBUS_LABELS_FILE", str(tmp_path / "labels.json"))
    first, second = dataset.users
    provider = "truth"
    if hostile == "many labels":
        content = json.dumps({user.user: [0] * 1001 for user in dataset.users}).encode()
        dataset = dataset.model_copy(update={"truth": await bus.objects.put(content)})
    elif hostile == "no truth":
        gone = Ref(name="sha256-" + "ab" * 32, sha256="ab" * 32, size=9)
        dataset = dataset.model_copy(update={"truth": gone})
    else:
        provider = "recorded"
        content = encode_shard(np.zeros((1001, 2, 2, 1), np.uint8)) if hostile == "many images" else b"garbage"
        shard = await bus.objects.put(content)
        if hostile == "no bytes":
            shard = shard.model_copy(update={"size": 0})
        users = (first.model_copy(update={"shard": shard}), second)
        dataset = dataset.model_copy(update={"users": users})
    ref = await bus.objects.put(dataset.model_dump_json().encode())
    config = labelling(2, 2, provider=provider)
    async with background(serve(bus, asyncio.Event())):
        await bus.publish(good.model_copy(update={"run": unique_run, "dataset": ref, "config": config}))
        finished = await ended(bus, unique_run)
        await wait_for(lambda: all_labelled(bus, good.run, 2))
    assert finished.status == "failed"
    assert finished.reason.startswith("labelling: ")


def api(monkeypatch: pytest.MonkeyPatch, server: LabelServer, folder: Path) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "key")
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    monkeypatch.setenv("FEDBUS_LABELLER_CACHE", str(folder / "labels.sqlite"))
    monkeypatch.setenv("FEDBUS_LABELLER_MAX_BACKOFF_S", "0.05")


async def test_a_model_labels_a_run_and_its_tokens_are_said(
    bus: Bus, unique_run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with label_server("bag", "sneaker", "no such thing") as server:
        api(monkeypatch, server, tmp_path)
        server.script.extend(["429 0.1", "500"])
        async with background(serve(bus, asyncio.Event())):
            started = await start_run(bus, unique_run, labelling(3, 7, provider="openai", model="gpt-4o"), RunSources())
            found = await wait_for(lambda: all_labelled(bus, unique_run, 3))
    dataset = await dataset_of(bus, started)
    for user in dataset.users:
        said = found[user.user]
        pixels = decode_shard(await bus.objects.get(user.shard))[0].reshape(7, -1)[:, 0]
        assert said.labels == tuple((8, 7, None)[pixel % 3] for pixel in pixels)
        assert [one.index for one in said.dropped] == [index for index, pixel in enumerate(pixels) if pixel % 3 == 2]
        assert (said.provider, said.model) == ("openai", "gpt-4o")
        assert (said.prompt_tokens, said.completion_tokens) == (2 * PROMPT_TOKENS, 2 * COMPLETION_TOKENS)


async def test_a_labeller_that_is_stopped_goes_on_where_it_was(
    bus: Bus, unique_run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(service, "ACK_WAIT_S", 1.0)
    with label_server("bag", "sneaker") as server:
        api(monkeypatch, server, tmp_path)
        server.script.extend(["answer", "answer", "answer", "hang"])
        spec = {"provider": "openai", "concurrency": 1, "images_per_request": 2}
        async with background(serve(bus, asyncio.Event())):
            await start_run(bus, unique_run, labelling(3, 4, **spec), RunSources())
            await wait_for(lambda: len(server.requests) == 4)
        assert len(await labels_of(bus, unique_run)) == 1
        async with background(serve(bus, asyncio.Event())):
            found = await wait_for(lambda: all_labelled(bus, unique_run, 3))
    assert len(server.requests) == 7
    assert {one.prompt_tokens for one in found.values()} == {2 * PROMPT_TOKENS}


async def test_nobody_is_asked_on_for_a_run_that_was_cancelled(
    bus: Bus, unique_run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with label_server("bag", "sneaker") as server:
        api(monkeypatch, server, tmp_path)
        server.script.extend(["answer", "hang"])
        spec = {"provider": "openai", "concurrency": 1, "images_per_request": 4}
        async with background(serve(bus, asyncio.Event())):
            await start_run(bus, unique_run, labelling(30, 4, **spec), RunSources())
            await wait_for(lambda: len(server.requests) == 2)
            await bus.publish(RunFinished(run=unique_run, status="cancelled", rounds=0))
            server.released.set()
            await wait_for(lambda: all_labelled(bus, unique_run, 2))
            # Another run is asked about meanwhile, and no more for the first.
            await start_run(bus, f"{unique_run}-next", labelling(3, 4, **spec), RunSources())
            await wait_for(lambda: all_labelled(bus, f"{unique_run}-next", 3))
    assert len(await labels_of(bus, unique_run)) == 2


async def test_a_run_without_an_api_key_fails_with_a_reason_that_says_what_to_set(
    bus: Bus, unique_run: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    async with background(serve(bus, asyncio.Event())):
        await start_run(bus, unique_run, labelling(2, 2, provider="openai"), RunSources())
        finished = await ended(bus, unique_run)
    assert "OPENAI_API_KEY" in finished.reason


async def test_stopping_ends_the_agent_while_it_waits_for_runs(bus: Bus, unique_run: str):
    stop = asyncio.Event()
    serving = asyncio.create_task(serve(bus, stop))
    await start_run(bus, unique_run, labelling(1, 1), RunSources())
    await wait_for(lambda: all_labelled(bus, unique_run, 1))
    stop.set()
    async with asyncio.timeout(5):
        await serving
    assert len(await labels_of(bus, unique_run)) == 1
    async with bus.follow(events_of(unique_run), live=False) as items:
        kinds = [item.event.data.TYPE async for item in items if isinstance(item, Stored)]
    assert kinds == ["run.started", "images.labelled"]


def test_the_digest_of_an_image_depends_on_its_pixels_alone():
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    assert image_digest(image) == image_digest(np.asfortranarray(image)) != image_digest(image + 1)
