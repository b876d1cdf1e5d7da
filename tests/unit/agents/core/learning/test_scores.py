from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.audit.compare import compare
from agents.core.learning.kinds import open_kind
from agents.core.learning.scores import MAX_LOSS, losses, scores, scores_of_counts
from tests.unit.agents.core.learning.models import GREY

LABELS = np.array([0, 1, 2, 2], np.int64)


def test_loss_is_the_mean_cross_entropy_without_smoothing():
    logits = np.log(np.array([[0.7, 0.2, 0.1], [0.3, 0.4, 0.3], [0.5, 0.25, 0.25], [0.1, 0.1, 0.8]], np.float32))
    result = scores(logits, LABELS).score
    assert result.loss == pytest.approx(-np.mean(np.log([0.7, 0.4, 0.25, 0.8])), rel=1e-6)
    assert result.accuracy == 0.75


def test_large_logits_lose_no_precision():
    logits = np.array([[1000.0, 999.0], [0.0, 1.0]], np.float32)
    expected = math.log(1 + math.exp(-1))
    assert scores(logits, np.array([0, 1])).score.loss == pytest.approx(expected, rel=1e-12)


def test_a_model_that_diverged_has_a_finite_loss():
    logits = np.array([[np.nan, np.nan, np.nan], [np.inf, -np.inf, 0.0], [1e38, -1e38, -1e38], [0, 0, 1]], np.float32)
    result = scores(logits, LABELS).score
    assert math.isfinite(result.loss)
    assert result.loss > MAX_LOSS / 4


def test_the_confusion_matrix_counts_true_by_predicted():
    logits = np.eye(3, dtype=np.float32)[[0, 0, 2, 1]]
    result = scores(logits, LABELS).by_class
    assert result.confusion == ((1, 0, 0), (1, 0, 0), (0, 1, 1))
    assert result.per_class == (1.0, 0.0, 0.5)


def test_a_class_without_images_has_no_accuracy():
    assert scores(np.eye(4, dtype=np.float32)[[0, 1]], np.array([0, 1])).by_class.per_class == (1.0, 1.0, None, None)


@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.integers(2, 7))
def test_accuracy_is_the_trace_and_the_mean_of_the_classes(seed: int, images: int, classes: int):
    generator = np.random.Generator(np.random.PCG64(seed))
    logits = generator.normal(size=(images, classes)).astype(np.float32)
    labels = generator.integers(0, classes, images)
    counts = np.array(scores(logits, labels).by_class.confusion)
    assert counts.sum() == images
    assert np.trace(counts) / images == scores(logits, labels).score.accuracy
    assert scores(logits, labels).score.loss >= 0


def test_two_models_are_compared_image_by_image():
    a, b = np.eye(3, dtype=np.float32)[[0, 1, 0, 1]], np.eye(3, dtype=np.float32)[[0, 2, 2, 0]]
    result = compare(("a", "b"), open_kind("image-classification", GREY), (a, b), LABELS, ["x", "y", "z"])
    assert (result.both_right, result.only_a_right, result.only_b_right, result.both_wrong) == (1, 1, 1, 1)
    assert result.same_prediction == 1
    assert (result.a.score.accuracy, result.b.score.accuracy) == (0.5, 0.5)


@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.integers(2, 7))
def test_counts_and_loss_are_all_that_scores_are_made_of(seed: int, images: int, classes: int):
    generator = np.random.Generator(np.random.PCG64(seed))
    logits = generator.normal(size=(images, classes)).astype(np.float32)
    labels = generator.integers(0, classes, images)
    found = scores(logits, labels)
    assert scores_of_counts(found.by_class.confusion, found.loss) == found
    assert found.images == images
    assert found.score.accuracy == float(np.mean(logits.argmax(axis=1) == labels))
    assert found.loss == losses(logits, labels).mean()
