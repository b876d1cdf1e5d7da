"""From a folder of mixed, partly broken pictures to a finished run of ViT-base in Chromium, labelled over HTTP.

The model has the true configuration of google/vit-base-patch16-224 and random weights. ``make test-large`` runs this.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from agents.core.learning.decoding import decode_update
from agents.core.learning.kinds import open_kind
from agents.core.learning.task import TaskInputs, run_task
from agents.words.events import RoundPlanned, TaskAssigned, UpdateSubmitted
from agents.words.run_config import TaskSpec
from artifacts.manifest import artifact_paths, load_manifest
from artifacts.ort_training import NativeTrainer
from bus.recording.files import load_recording
from data.dataset import load_dataset
from tests.imagenet_names import imagenet_like_names
from tests.unit.agents.labeller.label_server import label_server

pytestmark = [pytest.mark.large, pytest.mark.timeout(1_800)]
CLASSES = ("ant", "bee", "cat", "dog")
TOLERANCE = 2e-3
"""Largest difference of any parameter's change, relative to the largest change: sums of a ViT-base are long."""


class Prepared(NamedTuple):
    """Folders that a run starts from."""

    artifacts: Path
    users: Path
    held_out: Path


def fedbus(*arguments: object, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "agents.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=1_500,
        check=False,
        env={**os.environ, **env},
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ViT-base with random weights and class names like the real ones, as save_pretrained leaves it."""
    import torch
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    folder = tmp_path_factory.mktemp("vit-base")
    torch.manual_seed(0)
    names = dict(enumerate(imagenet_like_names()))
    config = ViTConfig(id2label=names, label2id={name: index for index, name in names.items()})
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessor().save_pretrained(folder)
    return folder


def write_pictures(folder: Path, seed: int) -> int:
    """Twelve good pictures of any format and size, and three that are none; how many are good."""
    generator = np.random.default_rng(seed)
    forms = [("RGB", "jpg"), ("L", "png"), ("P", "png"), ("RGBA", "png"), ("CMYK", "jpg"), ("RGB", "webp")]
    for index in range(12):
        mode, ending = forms[index % len(forms)]
        size = (int(generator.integers(40, 500)), int(generator.integers(40, 500)))
        colour = tuple(int(value) for value in generator.integers(0, 256, 3))
        picture = Image.new("RGB", size, colour)
        home = folder / CLASSES[index % len(CLASSES)]
        home.mkdir(parents=True, exist_ok=True)
        picture.convert(mode).save(home / f"picture-{index}.{ending}")
    (folder / "ant" / "notes.txt").write_text("not a picture")
    whole = (folder / "ant" / "picture-0.jpg").read_bytes()
    (folder / "bee" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "cat" / "empty.png").write_bytes(b"")
    return 12


@pytest.fixture(scope="module")
def built(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Prepared]:
    """Artifacts of a mode and the two datasets prepared for them; made once for each mode."""
    known: dict[str, Prepared] = {}

    def make(mode: str) -> Prepared:
        if mode not in known:
            folder = tmp_path_factory.mktemp("built")
            made = known[mode] = Prepared(folder / "artifacts", folder / "users", folder / "held-out")
            labels = folder / "classes.txt"
            labels.write_text("\n".join(CLASSES))
            good = write_pictures(folder / "pictures", 1)
            write_pictures(folder / "others", 2)
            fedbus("artifacts", "build", "--model", model, "--train", mode, "--labels", labels, "-o", made.artifacts)
            fedbus("data", "prepare", folder / "pictures", "-o", made.users, "--artifacts", made.artifacts)
            fedbus("data", "prepare", folder / "others", "-o", made.held_out, "--artifacts", made.artifacts)
            prepared = json.loads((made.users / "manifest.json").read_text())
            assert len(prepared["images"]) == good
            assert {Path(one["source"]).name for one in prepared["skipped"]} == {"notes.txt", "cut.jpg", "empty.png"}
        return known[mode]

    return make


def test_a_model_with_two_classes_of_one_name_is_built_and_fed(model: Path, tmp_path: Path) -> None:
    for name in ("crane (517)", "ski", "crane"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        Image.new("RGB", (300, 200), "red").save(tmp_path / "pictures" / name / "a.jpg")
    said = fedbus("artifacts", "build", "--model", model, "--train", "head", "-o", tmp_path / "artifacts")
    assert "crane (134), crane (517)" in said
    fedbus("data", "prepare", tmp_path / "pictures", "-o", tmp_path / "users", "--artifacts", tmp_path / "artifacts")
    assert load_dataset(tmp_path / "users").labels.tolist() == [-1, 517, 795]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("mode", ["head", "last-1", "lora:8"])
def test_from_a_folder_of_pictures_to_a_run_in_chromium(
    built: Callable[[str], Prepared], tmp_path: Path, mode: str, threads: int
) -> None:
    artifacts, users, held_out = built(mode)
    out = tmp_path / "out"
    demo = ["demo", "--users", 2, "--images", 4, "--rounds", 1, "--clients", "browser:1", "--out", out]
    demo += ["--artifacts", artifacts, "--data", users, "--held-out", held_out, "--labeller", "openai"]
    demo += ["--threads", threads]
    with label_server(*CLASSES) as server:
        said = fedbus(
            *demo,
            OPENAI_BASE_URL=server.url,
            OPENAI_API_KEY="none",
            FEDBUS_LABELLER_CACHE=str(tmp_path / "labels.sqlite"),
        )
    assert "completed" in said
    assert sum(len(json.dumps(request)) > 0 for request in server.requests) >= 2

    recording = load_recording(out / "recording.jsonl.gz")
    payloads = [stored.event.data for stored in recording.events]
    plan = next(data for data in payloads if isinstance(data, RoundPlanned))
    spec = TaskSpec.model_validate_json(recording.objects[plan.spec.sha256])
    base = np.frombuffer(recording.objects[plan.base_model.sha256], "<f4").astype(np.float32)
    tasks = {data.user: data for data in payloads if isinstance(data, TaskAssigned)}
    updates = [data for data in payloads if isinstance(data, UpdateSubmitted)]
    manifest = load_manifest(artifacts)
    trainer = NativeTrainer(manifest, artifact_paths(manifest, artifacts), threads=2)
    kind = open_kind(manifest.kind, manifest.model)
    images = load_dataset(users).images
    assert len(updates) == 2
    for number, update in enumerate(sorted(updates, key=lambda one: one.user)):
        owned = images[4 * number : 4 * number + 4]
        native = run_task(
            TaskInputs(tasks[update.user], spec, owned, base), kind, trainer, lambda _: None, time.monotonic
        )
        delta = decode_update(recording.objects[update.update.sha256], update.encoding, len(base))
        assert update.metrics.predictions == native.metrics.predictions
        assert update.metrics.mismatched_images == native.metrics.mismatched_images
        largest = np.abs(native.delta).max()
        assert np.abs(delta - native.delta).max() <= TOLERANCE * largest
