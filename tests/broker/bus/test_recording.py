import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from agents.core.learning.augment import default_augmentation
from agents.words.events import ImagesLabelled, RoundPlanned, RunStarted, TaskAssigned
from agents.words.run_config import RunConfig, RunDataset, TaskSpec, TrainingSpec, UserShard
from bus.client import Bus
from bus.errors import FedbusError, MalformedRecordingError, ObjectMissingError
from bus.recording.files import load_recording, record
from bus.recording.formats import FORMAT
from bus.words.values import Ref
from tests.broker.bus.conftest import failed

JSON = "application/json"


async def small_run(bus: Bus, run: str) -> dict[str, Ref]:
    """Publishes the first events of a run of one user; the objects by what they are."""

    async def put(name: str, body: str | None = None) -> Ref:
        return await bus.objects.put((body or f"{name} of {run}").encode(), media_type=JSON if body else "x/y")

    refs = {name: await put(name) for name in ("shard", "held_out", "truth", "model_file", "base_model", "optimizer")}
    users = (UserShard(user="u", shard=refs["shard"]),)
    dataset = RunDataset(classes=("a", "b"), users=users, held_out=refs["held_out"], truth=refs["truth"])
    refs["dataset"] = await put("dataset", dataset.model_dump_json())
    file = {"path": "x", **refs["model_file"].model_dump(include={"size", "sha256", "media_type"})}
    refs["artifacts"] = await put("artifacts", json.dumps({"files": {"training_model": file}, "run": run}))
    training = TrainingSpec(augmentation=default_augmentation())
    spec = TaskSpec(
        run=run,
        round=1,
        artifacts=refs["artifacts"],
        base_model=refs["base_model"],
        optimizer=refs["optimizer"],
        learning_rate=0.1,
        epochs=1,
        augmentations=1,
        augmentation=training.augmentation,
        encoding="float32",
    )
    refs["spec"] = await put("spec", spec.model_dump_json())
    started = RunStarted(
        run=run,
        config=RunConfig(users=1, training=training),
        config_digest="0" * 64,
        dataset=refs["dataset"],
        artifacts=refs["artifacts"],
        base_model=refs["base_model"],
        users=1,
    )
    planned = RoundPlanned.model_validate(
        {
            "run": run,
            "round": 1,
            "base_model": refs["base_model"],
            "spec": refs["spec"],
            "users": 1,
            "quorum": 1,
            "learning_rate": 0.1,
            "deadline": "2030-01-01T00:00:00Z",
            "deadline_s": 5,
        }
    )
    labelled = ImagesLabelled(run=run, user="u", shard=refs["shard"], labels=(0, None), provider="truth")
    task = TaskAssigned(run=run, round=1, user="u", shard=refs["shard"], labels=(0, None), spec=refs["spec"], seed=1)
    await bus.publish_many([started, labelled, planned, task, failed(run)])
    return refs


@pytest.mark.parametrize("name", ["run.jsonl", "run.jsonl.gz"])
async def test_a_recording_gives_back_events_and_objects(bus: Bus, unique_run: str, tmp_path: Path, name: str) -> None:
    refs = await small_run(bus, unique_run)
    counts = await record(bus, unique_run, tmp_path / name, include="all")
    recording = load_recording(tmp_path / name)
    assert (recording.run, recording.include, len(recording.events)) == (unique_run, "all", counts.events)
    assert set(recording.objects) == {ref.sha256 for ref in refs.values()}
    assert recording.objects[refs["shard"].sha256] == f"shard of {unique_run}".encode()
    assert counts.object_bytes == sum(ref.size for ref in refs.values())
    for stored in recording.events:
        found = await bus.find(stored.event.subject or "")
        assert found == stored
    assert [path.name for path in tmp_path.iterdir()] == [name]


async def test_a_replay_recording_leaves_out_images_and_artifact_files(
    bus: Bus, unique_run: str, tmp_path: Path
) -> None:
    refs = await small_run(bus, unique_run)
    await record(bus, unique_run, tmp_path / "run.jsonl")
    left_out = {refs[name].sha256 for name in ("shard", "held_out", "model_file")}
    assert set(load_recording(tmp_path / "run.jsonl").objects) == {ref.sha256 for ref in refs.values()} - left_out


async def test_the_same_run_is_recorded_as_the_same_bytes(bus: Bus, unique_run: str, tmp_path: Path) -> None:
    await small_run(bus, unique_run)
    for name in ("one.jsonl.gz", "two.jsonl.gz"):
        await record(bus, unique_run, tmp_path / name)
    assert (tmp_path / "one.jsonl.gz").read_bytes() == (tmp_path / "two.jsonl.gz").read_bytes()


async def test_what_cannot_be_recorded_leaves_no_file(bus: Bus, unique_run: str, tmp_path: Path) -> None:
    with pytest.raises(FedbusError, match="no run"):
        await record(bus, unique_run, tmp_path / "run.jsonl")
    with pytest.raises(FedbusError, match="cannot be a recording"):
        await record(bus, unique_run, tmp_path / "run.zip")
    ref = Ref(name=f"sha256-{'1' * 64}", size=3, sha256="1" * 64)
    await bus.publish(ImagesLabelled(run=unique_run, user="u", shard=ref, labels=(), provider="truth"))
    with pytest.raises(ObjectMissingError):
        await record(bus, unique_run, tmp_path / "run.jsonl", include="all")
    assert list(tmp_path.iterdir()) == []


def changed(key: str, value: object) -> Callable[[list[dict[str, object]]], object]:
    """A damage: sets a field of the line that has it."""
    return lambda lines: [line.update({key: value}) for line in lines if key in line]


DAMAGES: dict[str, tuple[Callable[[list[dict[str, object]]], object], str]] = {
    "a later version": (changed("fedbus-recording", FORMAT + 1), f"line 1: it has format {FORMAT + 1}"),
    "no header": (lambda lines: lines.pop(0), "is no recording: it does not begin with the header"),
    "a missing event": (lambda lines: lines.pop(2), "4 of 5 events"),
    "a missing object": (lambda lines: lines.pop(), "5 of 6 objects"),
    "other bytes": (changed("base64", "AAAA"), "line 7: the bytes of sha256-"),
    "bad base64": (changed("base64", "%"), "line 7: "),
    "an event of another type": (
        lambda lines: lines[1].update({"event": {"type": "x", "data": {}}}),
        "line 2: unknown",
    ),
    "another subject": (changed("subject", "ev.x.run.finished"), "line 2: the event does not belong"),
    "another order": (lambda lines: lines.insert(1, lines.pop(2)), "line 3: sequence"),
    "neither event nor object": (lambda lines: lines[3].pop("event"), "line 4: ref is missing"),
    "an unreadable time": (changed("time", "yesterday"), "line 2: time"),
}


@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_damaged_recording_is_refused_with_the_line_and_the_cause(
    bus: Bus, unique_run: str, tmp_path: Path, damage: str
) -> None:
    path = tmp_path / "run.jsonl"
    await small_run(bus, unique_run)
    await record(bus, unique_run, path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    harm, cause = DAMAGES[damage]
    harm(lines)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(MalformedRecordingError, match=cause) as caught:
        load_recording(path)
    assert caught.value.hint


async def test_a_recording_that_was_cut_anywhere_is_refused(bus: Bus, unique_run: str, tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl.gz"
    await small_run(bus, unique_run)
    await record(bus, unique_run, path)
    whole = path.read_bytes()
    for length in range(0, len(whole), 97):
        path.write_bytes(whole[:length])
        with pytest.raises(MalformedRecordingError):
            load_recording(path)
    plain = gzip.decompress(whole)
    for length in (0, 10, len(plain) // 2, len(plain) - 1):
        (tmp_path / "run.jsonl").write_bytes(plain[:length])
        with pytest.raises(MalformedRecordingError):
            load_recording(tmp_path / "run.jsonl")


def test_noise_is_not_a_recording(tmp_path: Path) -> None:
    for name in ("noise.jsonl", "noise.jsonl.gz"):
        for noise in (os.urandom(1000), b"[1]\n", b"[" * 100_000 + b"\n", b"null\n", b"\xff\n"):
            (tmp_path / name).write_bytes(noise)
            with pytest.raises(MalformedRecordingError):
                load_recording(tmp_path / name)
