"""The largest event of each type, every field at its bound, is one that the stream takes."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from agents.core.labels.labels import MAX_DATA_BYTES, fitting
from agents.words import events as words
from agents.words.run_config import AugmentationSpec, LabellingSpec, RunConfig, TrainingSpec
from bus.broker.topology import MAX_EVENT_BYTES
from bus.client import Bus
from bus.words.payload import Payload, payloads
from bus.words.values import MAX_IMAGES_PER_USER, MAX_USERS, Ref

NAME = "n" * 64
TEXT = "\x01" * 500
"""The longest in JSON: six bytes a character."""
REF = Ref(bucket=NAME, name=f"sha256-{'f' * 64}", size=2**53, sha256="f" * 64, media_type="\x01" * 100)
LABEL = 9_999
"""The last of as many classes as a dataset may have."""
LARGE = 1.2345678901234567e-300
MANY = 2**53
AT = datetime(2026, 12, 31, 23, 59, 59, 999_999, UTC)
SCORE = words.Score(accuracy=0.12345678901234567, loss=LARGE)


def config() -> RunConfig:
    rotations = (-65_536,) * 361
    augmentation = AugmentationSpec(cos=rotations, sin=rotations, inverse_scale=rotations)
    return RunConfig(
        seed=2**32 - 1,
        users=MAX_USERS,
        labelling=LabellingSpec(model=TEXT[:128]),
        training=TrainingSpec(augmentation=augmentation, encoding=TEXT[:32]),
        strategy=TEXT[:128],
        strategy_settings={f"{number:064}": TEXT[:64] for number in range(64)},
        max_update_norm=LARGE,
    )


def labelled(answer: str = TEXT) -> words.ImagesLabelled:
    dropped = [words.DroppedImage(index=at, reason="not_a_class", answer=answer) for at in range(MAX_IMAGES_PER_USER)]
    return words.ImagesLabelled(
        run=NAME,
        user=NAME,
        shard=REF,
        labels=(None,) * MAX_IMAGES_PER_USER,
        dropped=tuple(dropped),
        provider=TEXT[:64],
        model=TEXT[:128],
        prompt_version=TEXT[:64],
        prompt_tokens=MANY,
        completion_tokens=MANY,
    )


METRICS = words.UpdateMetrics(
    predictions=(LABEL,) * MAX_IMAGES_PER_USER,
    examples=MANY,
    mismatched_images=MANY,
    trained_images=MANY,
    loss_first=LARGE,
    loss_last=LARGE,
    predict_s=LARGE,
    train_s=LARGE,
    platform="browser",
)
FIELDS: dict[str, Any] = {
    "round": 1_000_000,
    "user": NAME,
    "users": MAX_USERS,
    "shard": REF,
    "spec": REF,
    "dataset": REF,
    "artifacts": REF,
    "update": REF,
    "parent": REF,
    "details": REF,
    "server_state": REF,
    "final_model": REF,
    "config_digest": "f" * 64,
    "inputs_digest": "f" * 64,
    "labels": (LABEL,) * MAX_IMAGES_PER_USER,
    "fraction": LARGE,
    "quorum": 1,
    "deadline": AT,
    "deadline_s": LARGE,
    "largest_value": LARGE,
    "norm": LARGE,
    "clip_norm": LARGE,
    "learning_rate": LARGE,
    "seed": 2**32 - 1,
    "encoding": TEXT[:32],
    "metrics": METRICS,
    "client": NAME,
    "engine": TEXT[:64],
    "attempt": NAME,
    "code": "unknown_task",
    "extension": 1_000,
    "accepted": MAX_USERS,
    "missing": MAX_USERS,
    "rejected": MAX_USERS,
    "through": MANY,
    "strategy": TEXT[:128],
    "updates": MAX_USERS,
    "examples": MANY,
    "images": MANY,
    "base": SCORE,
    "updated": SCORE,
    "rounds": MANY,
    "status": "completed",
    "reason": TEXT,
}
SPECIAL: dict[str, dict[str, Any]] = {
    "run.started": {"base_model": REF},
    "round.started": {"base_model": REF},
    "round.planned": {"base_model": REF},
    "update.submitted": {"base_model": "f" * 64},
    "model.published": {"model": REF},
    "model.evaluated": {"model": "f" * 64},
    "evaluation.failed": {"model": "f" * 64},
    "round.closed": {"reason": "deadline"},
    "round.failed": {"code": "strategy_failed"},
    "runs.settled": {"sequence": MANY, "open": ({"run": NAME, "sequence": MANY},) * words.MAX_OPEN_RUNS},
}


def largest(word: type[Payload], run: str) -> Payload:
    """An event with every field at its bound; a new field without one here is missed by this line."""
    if word is words.ImagesLabelled:
        return fitting(labelled().model_copy(update={"run": run}))
    values = FIELDS | {"config": config()} | SPECIAL.get(word.TYPE, {}) | {"run": run}
    missing = set(word.model_fields) - set(values)
    assert not missing, f"say how large {missing} of {word.TYPE} can be"
    return word.model_validate({name: values[name] for name in word.model_fields})


@pytest.mark.parametrize("word", payloads(), ids=lambda word: word.TYPE)
async def test_the_largest_event_of_each_type_is_published(bus: Bus, word: type[Payload], unique_run: str) -> None:
    data = largest(word, f"{unique_run}-{'x' * (63 - len(unique_run))}")
    published = await bus.publish(data)
    assert published.event.data == data
    assert len(published.event.to_json()) < MAX_EVENT_BYTES


@pytest.mark.parametrize("character", ["a", "é", "木", "🛩", "\x01"])
@pytest.mark.parametrize("dropped", [140, MAX_IMAGES_PER_USER])
def test_answers_are_cut_as_little_as_needed_and_all_alike(dropped: int, character: str) -> None:
    whole = labelled(character * 500)
    whole = whole.model_copy(update={"dropped": whole.dropped[:dropped]})
    said = fitting(whole)
    assert said.labels == whole.labels
    assert [image.reason for image in said.dropped] == [image.reason for image in whole.dropped]
    assert fitting(said) == said
    (length,) = {len(image.answer) for image in said.dropped}
    assert said.dropped[0].answer == character * length
    if length < 500:
        longer = tuple(one.model_copy(update={"answer": character * (length + 1)}) for one in said.dropped)
        assert len(said.model_copy(update={"dropped": longer}).model_dump_json().encode()) > MAX_DATA_BYTES


def test_labels_of_normal_size_keep_their_bytes() -> None:
    said = labelled("no such thing").model_copy(update={"dropped": labelled("no such thing").dropped[:20]})
    assert fitting(said) is said
