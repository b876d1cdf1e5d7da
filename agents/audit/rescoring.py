"""Runs recorded models over recorded held-out images, for the replay of the evaluator."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

from pydantic import ValidationError

from agents.audit.replay import HeldOut, find_object
from agents.core.learning.kinds import open_kind
from agents.engines import choose, open_engine
from agents.evaluator.scoring import HeldOutScorer
from agents.words.events import RunStarted
from agents.words.run_config import RunDataset
from artifacts.manifest import ArtifactManifest
from bus.errors import MalformedRecordingError
from bus.process.folders import temporary_folder
from bus.recording.files import Recording
from bus.words.problems import what_is_wrong


@contextlib.contextmanager
def recorded_held_out(recording: Recording) -> Iterator[HeldOut | None]:
    """The held-out images of a recording with all objects (``--include all``); nothing for one without them.

    Raises:
        MalformedRecordingError: the model's manifest is of another version of fedbus.
        ObjectMissingError: the recording lacks a part of the model.
        FedbusError: this machine has no engine for the model, or this version not its kind of task.
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
            f"the recorded model's manifest is not of this version: {what_is_wrong(error)}",
            hint="replay the other agents with --agent, or everything with the version that recorded it",
        ) from None
    dataset = RunDataset.model_validate_json(find_object(objects, started.dataset))
    kind = open_kind(started.config.kind, manifest.model)
    examples, labels = kind.decode(find_object(objects, dataset.held_out))
    if labels is None:
        raise MalformedRecordingError("the recorded held-out images have no labels", hint="replay the other agents")
    with temporary_folder("replay") as folder:
        paths = {}
        choice = choose(offered=manifest.offered)
        for role, file in choice.files(manifest).items():
            paths[role] = folder / file.sha256
            paths[role].write_bytes(find_object(objects, file.ref))
        engine = open_engine(manifest, paths, choice=choice)
        scorer = HeldOutScorer(engine, kind, examples, labels, classes=manifest.model.classes)
        yield lambda parameters: asyncio.run(scorer.scores(parameters))
