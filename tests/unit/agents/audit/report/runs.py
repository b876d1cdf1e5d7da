"""A whole small run as events, with evaluation details, for tests of the report."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from agents.core.learning.scores import EvaluationDetails, scores
from agents.words.events import (
    DroppedImage,
    ImagesLabelled,
    ModelEvaluated,
    ModelPublished,
    RoundClosed,
    RoundStarted,
    RunFinished,
    UpdateMetrics,
    UpdateRejected,
)
from tests.builders import (
    ANY_REF,
    BASE_REF,
    RUN,
    Stream,
    assigned,
    config,
    planned,
    ref_of,
    run_started,
    submitted,
)

CLASSES = ("T-shirt", "trouser", "sandal <b>&", "boot")
IMAGES = 200


def logits_of(accuracy: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits [n, 4] of a model that is right about so often, and the labels [n]."""
    generator = np.random.Generator(np.random.PCG64(seed))
    labels = generator.integers(0, len(CLASSES), IMAGES)
    right = generator.random(IMAGES) < accuracy
    predicted = np.where(right, labels, (labels + generator.integers(1, len(CLASSES), IMAGES)) % len(CLASSES))
    logits = np.zeros((IMAGES, len(CLASSES)), np.float32)
    logits[np.arange(IMAGES), predicted] = 2.0
    return logits, labels


def evaluated(round: int, accuracy: float) -> tuple[ModelEvaluated, dict[str, Any]]:
    """The evaluation of a round's model, and its details."""
    base, labels = logits_of(0.6, 1)
    updated = logits_of(accuracy, 1)[0] if round else base
    said = [scores(logits, labels) for logits in (base, updated)]
    details = EvaluationDetails(classes=CLASSES, base=said[0].by_class, updated=said[1].by_class)
    content = details.model_dump_json()
    ref = ref_of(content.encode())
    event = ModelEvaluated(
        run=RUN,
        round=round,
        model=model_of(round).sha256,
        images=IMAGES,
        base=said[0].score,
        updated=said[1].score,
        details=ref,
    )
    return event, {ref.sha256: json.loads(content)}


def model_of(round: int):
    """The model of a round; the base model for round 0."""
    return ref_of(f"model {round}".encode()) if round else BASE_REF


def a_run(*, rounds: int = 2, finished: bool = True) -> tuple[Stream, dict[str, Any]]:
    """A run of three users; in each round the update of the last one is refused. One that goes on has a round to do."""
    stream, details = Stream(), {}
    stream.add(run_started(config(rounds=rounds if finished else rounds + 1, users=3, fraction=0.5)))
    for index, user in enumerate(("a", "b", "c")):
        said = ImagesLabelled(
            run=RUN,
            user=user,
            shard=ANY_REF,
            labels=(1, None) if index == 0 else (1, 2),
            dropped=(DroppedImage(index=1, reason="unknown", answer="no idea"),) if index == 0 else (),
            provider="openai",
            model="gpt-4o",
            prompt_tokens=100,
            completion_tokens=7,
        )
        stream.add(said, after_s=0.5)
    event, more = evaluated(0, 0.6)
    stream.add(event, after_s=0.1)
    details |= more
    for number in range(1, rounds + 1):
        parent = model_of(number - 1)
        stream.add(RoundStarted(run=RUN, round=number), after_s=0.4)
        stream.add(planned(3, 2, round=number).model_copy(update={"base_model": parent}))
        for user in ("a", "b", "c"):
            stream.add(assigned(user, round=number))
        for user, client, engine in (("a", "tab", "onnxruntime-web"), ("b", "cli", "native"), ("c", "cli", "native")):
            metrics = UpdateMetrics(
                predictions=(0, 0), examples=2, mismatched_images=2, trained_images=14, predict_s=0.25, train_s=0.5
            )
            update = submitted(user, round=number, base=parent)
            changes = {"client": client, "engine": engine, "metrics": metrics}
            last = stream.add(update.model_copy(update=changes), after_s=1.0)
        stream.add(
            UpdateRejected(
                run=RUN, round=number, user="c", attempt=f"seq-{last.sequence}", code="nonfinite", reason="NaN",
                client="cli",
            )
        )  # fmt: skip
        through = stream.events[-1].sequence
        stream.add(RoundClosed(run=RUN, round=number, reason="all", accepted=2, missing=0, rejected=1, through=through))
        stream.add(
            ModelPublished(
                run=RUN, round=number, model=model_of(number), parent=parent, inputs_digest=ANY_REF.sha256,
                strategy="fedavg", updates=2, examples=4,
            ),
            after_s=0.25,
        )  # fmt: skip
        event, more = evaluated(number, 0.6 + 0.1 * number)
        stream.add(event, after_s=0.5)
        details |= more
    if finished:
        stream.add(RunFinished(run=RUN, status="completed", rounds=rounds, final_model=model_of(rounds)), after_s=0.1)
    return stream, details
