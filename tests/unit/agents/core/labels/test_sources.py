from __future__ import annotations

import json

import numpy as np
import pytest

from agents.core.labels.errors import LabelsFileError, TruthMissingError
from agents.core.labels.label_file import LabelFile
from agents.core.labels.labels import Answer, UserLabels
from agents.core.labels.matching import LabelMatcher
from agents.core.labels.sources import RecordedAnswers, SimulatedLabeller, image_digest, simulated_labels

CLASSES = ("cat", "dog", "cot")
IMAGES = np.arange(2 * 4 * 4, dtype=np.uint8).reshape(2, 4, 4, 1)


def recorded(content: object, user: str = "u0") -> UserLabels:
    return RecordedAnswers(json.dumps(content).encode(), "labels.json").label(user, IMAGES, LabelMatcher(CLASSES))


def simulated(truth: bytes) -> SimulatedLabeller:
    return SimulatedLabeller(truth, classes=3, error_rate=0.5, seed=4)


def test_the_simulated_labeller_says_the_truth_with_its_errors():
    said = simulated(b'{"u0": [0, 1, 2, 2, 1, 0]}').label("u0")
    assert said.labels == simulated_labels([0, 1, 2, 2, 1, 0], 3, error_rate=0.5, seed=4, user="u0")
    assert said.dropped == ()


@pytest.mark.parametrize("truth", [b"", b"[]", b'{"u0": "cat"}', b'{"u0": [0.5]}', b"\xff"])
def test_a_truth_of_another_form_is_refused(truth: bytes):
    with pytest.raises(TruthMissingError):
        simulated(truth)


@pytest.mark.parametrize("truth", [b"{}", b'{"u0": [3]}', b'{"u0": [0, -1]}'])
def test_a_user_without_a_sensible_truth_is_refused(truth: bytes):
    labeller = simulated(truth)
    with pytest.raises(TruthMissingError, match="u0"):
        labeller.label("u0")


def test_answers_by_user_come_before_answers_by_image():
    by_image = {image_digest(image): "cot" for image in IMAGES}
    assert recorded({"u0": ["Dog", "a cat"], **by_image}).labels == (1, 0)
    assert recorded({"u0": ["Dog", "a cat"], **by_image}, "u1").labels == (2, 2)


def label_file(*ids: str, **more: object) -> dict[str, object]:
    """A file that matched the first id to ``dog`` and set the second aside."""
    aside = {"answer": "zeppelin", "reason": "not_a_class", "candidates": []}
    rejected = dict.fromkeys(ids[1:], aside)
    return {"matched": {ids[0]: "dog"}, "ambiguous": {}, "rejected": rejected, "classes": CLASSES, **more}


@pytest.mark.parametrize("by_id", [True, False])
def test_a_label_file_is_read_by_the_digests_of_its_images_and_keeps_why_one_was_set_aside(by_id: bool):
    digests = [image_digest(image) for image in IMAGES[::-1]]
    images = dict(zip(("a", "b"), digests, strict=True))
    said = recorded(label_file(*images, images=images) if by_id else label_file(*digests))
    assert said.labels == (None, 1)
    assert [(one.index, one.reason, one.answer) for one in said.dropped] == [(0, "not_a_class", "zeppelin")]


@pytest.mark.parametrize("content", [label_file("a"), {"u1": ["cat", "dog"]}, {image_digest(IMAGES[0]): "cat"}, {}])
def test_a_file_that_does_not_cover_a_users_images_is_refused(content: object):
    with pytest.raises(LabelsFileError, match="of the 2 images of u0") as raised:
        recorded(content)
    assert "fedbus data labels run" in raised.value.hint


def test_equal_images_with_other_labels_are_refused_until_somebody_settles_them():
    images = dict.fromkeys(("a", "b"), image_digest(IMAGES[0]))
    file = LabelFile.model_validate(label_file("a", images=images) | {"matched": {"a": "dog", "b": "cat"}})
    with pytest.raises(LabelsFileError, match="'b' is 'cat', and an equal one is 'dog'"):
        file.by_image()
    file.settle("a", "cot")
    assert file.by_image() == {image_digest(IMAGES[0]): Answer("cot")}


def test_another_number_of_answers_is_refused():
    with pytest.raises(LabelsFileError, match="2 images and 1 recorded"):
        recorded({"u0": ["dog"]})


@pytest.mark.parametrize("content", [b"", b"[1]", b'{"u0": 3}', b"[" * 100_000])
def test_a_file_of_another_form_is_refused_by_its_name(content: bytes):
    with pytest.raises(LabelsFileError, match=r"labels\.json"):
        RecordedAnswers(content, "labels.json")
