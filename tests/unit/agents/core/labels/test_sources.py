from __future__ import annotations

import json

import numpy as np
import pytest

from agents.core.labels.errors import LabelsFileError, TruthMissingError
from agents.core.labels.labels import UserLabels
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


def test_an_image_that_the_file_does_not_name_has_no_label():
    said = recorded({"matched": {image_digest(IMAGES[1]): "dog"}, "ambiguous": {}})
    assert said.labels == (None, 1)
    assert [(one.index, one.reason) for one in said.dropped] == [(0, "unknown")]


def test_another_number_of_answers_is_refused():
    with pytest.raises(LabelsFileError, match="2 images and 1 recorded"):
        recorded({"u0": ["dog"]})


@pytest.mark.parametrize("content", [b"", b"[1]", b'{"u0": 3}', b"[" * 100_000])
def test_a_file_of_another_form_is_refused_by_its_name(content: bytes):
    with pytest.raises(LabelsFileError, match=r"labels\.json"):
        RecordedAnswers(content, "labels.json")
