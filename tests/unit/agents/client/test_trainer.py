"""The native trainer: it refuses what it cannot do before it fetches anything large, and says what it trains with."""

from __future__ import annotations

import hashlib
import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agents.client.trainer import EngineTrainer
from agents.core.learning.augment import default_augmentation
from agents.core.learning.decoding import decode_update
from agents.core.learning.encodings import NonFiniteUpdateError
from agents.core.learning.kinds import TaskKindUnknownError
from agents.engines import EngineUnavailableError, EngineUnknownError
from agents.words.events import TaskAssigned
from agents.words.run_config import TaskSpec
from artifacts.default_task import DEFAULT_DIRECTORY
from bus.errors import FedbusError, ObjectMissingError
from bus.words.values import Ref
from data.shards import encode_shard

MANIFEST = json.loads((DEFAULT_DIRECTORY / "manifest.json").read_text())


class Objects:
    """A folder of objects that notes which ones are taken."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.taken: list[str] = []

    def put(self, data: bytes) -> Ref:
        digest = hashlib.sha256(data).hexdigest()
        (self.folder / digest).write_bytes(data)
        return Ref(name=f"sha256-{digest}", size=len(data), sha256=digest)

    async def path(self, ref: Ref) -> Path:
        self.taken.append(ref.sha256)
        return self.folder / ref.sha256

    async def get(self, ref: Ref) -> bytes:
        return (await self.path(ref)).read_bytes()


@pytest.fixture
def objects(tmp_path: Path) -> Objects:
    made = Objects(tmp_path)
    for file in MANIFEST["files"].values():
        made.put((DEFAULT_DIRECTORY / file["path"]).read_bytes() if file else b"")
    return made


def a_task(objects: Objects, *, manifest: dict[str, Any] | None = None, **spec: Any) -> TaskAssigned:
    settings: dict[str, Any] = {
        "run": "r",
        "round": 1,
        "artifacts": objects.put(json.dumps(MANIFEST | (manifest or {})).encode()),
        "base_model": objects.put((DEFAULT_DIRECTORY / "trainable.f32").read_bytes()),
        "learning_rate": 0.03,
        "epochs": 1,
        "augmentations": 1,
        "augmentation": default_augmentation(),
        "encoding": "float32",
    }
    images = np.random.default_rng(2).integers(0, 256, (3, 28, 28, 1), np.uint8)
    body = TaskSpec.model_validate({**settings, **spec}).model_dump_json().encode()
    return TaskAssigned(
        run="r",
        round=1,
        user="u",
        shard=objects.put(encode_shard(images)),
        labels=(1, 2, 3),
        spec=objects.put(body),
        seed=1,
    )


async def test_a_task_is_trained_and_says_where(objects: Objects, caplog: pytest.LogCaptureFixture) -> None:
    trainer = EngineTrainer(objects)
    with caplog.at_level(logging.INFO, "agents.client.trainer"):
        done = await trainer.run(a_task(objects), lambda _: None)
    assert done.metrics.platform == "native"
    assert done.metrics.mismatched_images > 0
    assert np.abs(decode_update(done.data, "float32", MANIFEST["trainable_count"])).max() > 0
    assert "engine ort-training, onnxruntime-training native: " in caplog.text


async def test_each_round_trains_at_its_own_rate_in_the_same_engine(objects: Objects) -> None:
    trainer = EngineTrainer(objects)  # type: ignore[arg-type]
    usual, slow, again = [
        (await trainer.run(a_task(objects, learning_rate=rate), lambda _: None)).data for rate in (0.03, 3e-5, 0.03)
    ]
    assert usual == again
    largest = [np.abs(decode_update(data, "float32", MANIFEST["trainable_count"])).max() for data in (usual, slow)]
    assert 0 < largest[1] < 0.01 * largest[0]
    opened = [file["sha256"] for role, file in MANIFEST["files"].items() if file and role != "trainable"]
    assert [objects.taken.count(digest) for digest in opened] == [1] * len(opened)


@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38])
async def test_after_a_model_that_is_no_number_another_is_trained_as_ever(objects: Objects, value: float) -> None:
    good, count = a_task(objects), MANIFEST["trainable_count"]
    bad = a_task(objects, base_model=objects.put(np.full(count, value, "<f4").tobytes()))
    trainer = EngineTrainer(objects)
    before = await trainer.run(good, lambda _: None)
    with pytest.raises(NonFiniteUpdateError):
        await trainer.run(bad, lambda _: None)
    assert (await trainer.run(good, lambda _: None)).data == before.data


async def test_the_optimizer_of_an_old_spec_is_not_even_fetched(objects: Objects) -> None:
    nowhere = Ref(name="sha256-" + "0" * 64, size=1, sha256="0" * 64)
    done = await EngineTrainer(objects).run(a_task(objects, optimizer=nowhere), lambda _: None)  # type: ignore[arg-type]
    assert done.metrics.trained_images > 0
    assert nowhere.sha256 not in objects.taken


async def test_a_prefetch_that_fails_raises_what_failed_and_no_group_of_it(tmp_path: Path) -> None:
    class Emptied(Objects):
        async def get(self, ref: Ref) -> bytes:
            if (await self.path(ref)).exists():
                return await super().get(ref)
            raise ObjectMissingError(f"{ref.name} is not there")

    objects = Emptied(tmp_path)
    for file in MANIFEST["files"].values():
        objects.put((DEFAULT_DIRECTORY / file["path"]).read_bytes() if file else b"")
    task = a_task(objects)
    trainer = EngineTrainer(objects)  # type: ignore[arg-type]
    await trainer.prepare(task)
    (tmp_path / task.shard.sha256).unlink()
    (tmp_path / MANIFEST["files"]["trainable"]["sha256"]).unlink()
    with pytest.raises(ObjectMissingError):
        await trainer.prepare(task)


@pytest.mark.parametrize("hostile", ["odd base", "short base", "base of NaN", "pictures", "channels", "labels", "no"])
async def test_a_task_that_does_not_fit_is_refused_with_a_typed_error(objects: Objects, hostile: str) -> None:
    task = a_task(objects)
    base = (DEFAULT_DIRECTORY / "trainable.f32").read_bytes()
    shapes = {"pictures": (4, 13, 57, 1), "channels": (4, 28, 28, 3)}
    bases = {"odd base": base[:-1], "short base": base[:-4], "base of NaN": b"\xff" * len(base), "no": b""}
    if hostile in bases:
        task = a_task(objects, base_model=objects.put(bases[hostile]))
    elif hostile in shapes:
        shard = objects.put(encode_shard(np.ones(shapes[hostile], np.uint8)))
        task = task.model_copy(update={"shard": shard, "labels": (1, 2, 3, 4)})
    else:
        task = task.model_copy(update={"labels": tuple(10**6 for _ in task.labels)})
    with pytest.raises(FedbusError):
        await EngineTrainer(objects).run(task, lambda _: None)  # type: ignore[arg-type]


async def test_an_unknown_kind_of_task_is_refused_by_its_spec_alone(objects: Objects) -> None:
    task = a_task(objects, kind="poetry")
    with pytest.raises(TaskKindUnknownError, match="poetry"):
        await EngineTrainer(objects).run(task, lambda _: None)  # type: ignore[arg-type]
    assert objects.taken == [task.spec.sha256]


@pytest.mark.parametrize("wanted", [None, "ort-training"])
async def test_artifacts_for_other_engines_are_refused_by_their_manifest_alone(
    objects: Objects, wanted: str | None
) -> None:
    task = a_task(objects, manifest={"engines": {"another": ["checkpoint"]}})
    with pytest.raises(EngineUnavailableError, match="files for another and not for ort-training"):
        await EngineTrainer(objects, engine=wanted).run(task, lambda _: None)  # type: ignore[arg-type]
    assert len(objects.taken) == 2


def test_an_unknown_engine_is_refused_before_there_is_a_task(objects: Objects) -> None:
    with pytest.raises(EngineUnknownError, match="ort-training"):
        EngineTrainer(objects, engine="quick")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "command", [["agents.client", "--engine", "quick"], ["agents.cli", "client", "--native", "1", "--engine", "quick"]]
)
def test_a_client_with_an_unknown_engine_ends_at_once_with_the_code(command: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *command], capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path
    )
    assert done.returncode == 1
    assert "engine_unknown" in done.stdout + done.stderr
    assert "ort-training" in done.stdout + done.stderr
