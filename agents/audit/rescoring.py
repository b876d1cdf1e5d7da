"""Runs recorded models over recorded held-out images, for the replay of the evaluator."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from agents.audit.replay import HeldOut, find_object
from agents.engines.scoring import HeldOutScorer
from agents.words.events import RunStarted
from agents.words.run_config import RunDataset
from artifacts.manifest import ArtifactManifest
from artifacts.ort_training import NativeTrainer
from bus.errors import MalformedRecordingError
from bus.recording.files import Recording
from data.shards import decode_shard


@contextlib.contextmanager
def recorded_held_out(recording: Recording) -> Iterator[HeldOut | None]:
    """The held-out images of a recording with all objects (``--include all``); nothing for one without them.

    Raises:
        MalformedRecordingError: the model's manifest is of another version of fedbus.
        ObjectMissingError: the recording lacks a part of the model.
    """
    objects = recording.objects
    started = next((one.event.data for one in recording.events if isinstance(one.event.data, RunStarted)), None)
    if started is None or recording.include != "all":
        yield None
        return
    try:
        manifest = ArtifactManifest.model_validate_json(find_object(objects, started.artifacts))
    except ValidationError as error:
        raise MalformedRecordingError(
            f"the recorded model's manifest is not of this version: {error.errors()[0]['msg']}",
            hint="replay the other agents with --agent, or everything with the version that recorded it",
        ) from None
    dataset = RunDataset.model_validate_json(find_object(objects, started.dataset))
    images, labels = decode_shard(find_object(objects, dataset.held_out))
    if labels is None:
        raise MalformedRecordingError("the recorded held-out images have no labels", hint="replay the other agents")
    with tempfile.TemporaryDirectory(prefix="fedbus-replay-") as folder:
        paths = {}
        for role, file in manifest.files.for_training():
            paths[role] = Path(folder) / file.sha256
            paths[role].write_bytes(find_object(objects, file.ref))
        scorer = HeldOutScorer(NativeTrainer(manifest, paths), images, labels)
        yield HeldOut(labels, lambda parameters: asyncio.run(scorer.logits(parameters)))
