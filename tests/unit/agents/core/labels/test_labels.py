from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from agents.core.labels.labels import Answer, UserLabels, answers_told, images_labelled, settle
from agents.core.labels.matching import LabelMatcher
from agents.core.labels.sources import simulated_labels
from agents.words.run_config import LabellingSpec, UserShard
from tests.builders import ANY_REF, RUN, config, labelled, run_started


def test_the_errors_of_a_user_depend_on_seed_and_user_and_not_on_other_images():
    truth = [index % 10 for index in range(40)]
    labels = simulated_labels(truth, 10, error_rate=0.3, seed=4, user="user-001")
    assert labels == simulated_labels(truth, 10, error_rate=0.3, seed=4, user="user-001")
    assert labels[:25] == simulated_labels(truth[:25], 10, error_rate=0.3, seed=4, user="user-001")
    assert labels != simulated_labels(truth, 10, error_rate=0.3, seed=5, user="user-001")
    assert labels != simulated_labels(truth, 10, error_rate=0.3, seed=4, user="user-002")


def test_errors_have_their_rate_and_are_uniform_over_the_wrong_classes():
    truth = [3] * 20_000
    labels = np.array(simulated_labels(truth, 5, error_rate=0.2, seed=0, user="u"))
    counts = np.bincount(labels, minlength=5)
    assert counts[3] / len(truth) == pytest.approx(0.8, abs=0.01)
    assert counts[[0, 1, 2, 4]] / len(truth) == pytest.approx(0.05, abs=0.007)


@pytest.mark.parametrize(("rate", "right"), [(0.0, 50), (1.0, 0)])
def test_the_extreme_rates_change_nothing_or_everything(rate: float, right: int):
    truth = [index % 3 for index in range(50)]
    labels = simulated_labels(truth, 3, error_rate=rate, seed=1, user="u")
    assert sum(a == b for a, b in zip(labels, truth, strict=True)) == right
    assert set(labels) <= {0, 1, 2}


def test_answers_become_labels_or_reasons_and_their_tokens_add_up():
    matcher = LabelMatcher(["cat, kitten", "dog", "cot"])
    answers = [
        Answer("kitten", prompt_tokens=5, completion_tokens=1),
        Answer(None, "refused", prompt_tokens=7, completion_tokens=2),
        Answer("x" * 900),
        Answer("dog, cat"),
    ]
    said = settle(answers, matcher)
    assert said.labels == (0, None, None, None)
    assert [(one.index, one.reason) for one in said.dropped] == [(1, "refused"), (2, "not_a_class"), (3, "ambiguous")]
    assert len(said.dropped[1].answer) == 500
    assert (said.prompt_tokens, said.completion_tokens) == (12, 3)


TOLD = [
    Answer("kitten"),
    Answer(None, "refused"),
    Answer("x" * 900),
    Answer("cat, dog"),
    Answer("dog"),
    Answer("\ud800"),
]


def test_the_event_of_a_run_says_its_users_labels_and_who_was_asked():
    started = run_started(
        config().model_copy(update={"labelling": LabellingSpec(provider="openai", model="gpt-5", error_rate=0.0)})
    )
    labels = UserLabels((0, None), prompt_tokens=5, completion_tokens=2)
    said = images_labelled(started, UserShard(user="u0", shard=ANY_REF), labels, prompt_version="v1")
    assert (said.run, said.user, said.shard, said.labels) == (RUN, "u0", ANY_REF, (0, None))
    assert (said.provider, said.model, said.prompt_version) == ("openai", "gpt-5", "v1")
    assert (said.prompt_tokens, said.completion_tokens) == (5, 2)
    offline = run_started(config())
    assert images_labelled(offline, UserShard(user="u0", shard=ANY_REF), labels).model is None


def test_what_was_told_can_be_told_from_the_event_and_settles_to_the_same_labels():
    classes = ["cat, kitten", "dog", "cot"]
    matcher = LabelMatcher(classes)
    labels = replace(settle(TOLD, matcher), prompt_tokens=12, completion_tokens=3)
    said = images_labelled(run_started(config()), UserShard(user="u0", shard=ANY_REF), labels)
    assert [one.reason for one in said.dropped] == ["refused", "not_a_class", "ambiguous", "unknown"]
    assert settle(answers_told(said, classes), matcher) == labels


@pytest.mark.parametrize("label", [3, -1])
def test_a_label_that_is_no_class_cannot_have_been_told(label: int):
    classes = ["cat", "dog", "cot"]
    said = labelled("u0", (label, 1))
    assert settle(answers_told(said, classes), LabelMatcher(classes)).labels == (None, 1)
