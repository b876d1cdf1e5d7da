"""Subjects of the DLQ, and which subjects a filter stands for."""

from __future__ import annotations

import pytest

from bus.words.subjects import LetterSubject, letters_of, matches, parse_letter_subject


@pytest.mark.parametrize(
    "letter",
    [
        LetterSubject("malformed", "", 1),
        LetterSubject("given_up", "evaluator", 12),
        LetterSubject("retry", "evaluator", 12),
        LetterSubject("handled", "a_b-c", 2**62),
    ],
)
def test_a_subject_of_the_dlq_reads_back_and_is_in_its_filter(letter: LetterSubject) -> None:
    assert parse_letter_subject(str(letter)) == letter
    assert matches(letters_of(letter.kind), str(letter))
    assert letter.kind == "malformed" or not matches(letters_of(letter.kind, "other"), str(letter))


@pytest.mark.parametrize("subject", ["dlq", "dlq.0", "dlq.x", "dlq.given_up.evaluator", "dlq.lost.evaluator.1", "ev.1"])
def test_other_subjects_are_none_of_the_dlq(subject: str) -> None:
    assert parse_letter_subject(subject) is None


@pytest.mark.parametrize(
    ("filter_", "subject", "expected"),
    [
        ("ev.*.run.started", "ev.shop.run.started", True),
        ("ev.*.run.started", "ev.shop.run.finished", False),
        ("ev.*.run.started", "ev.shop.run.started.1", False),
        ("ev.>", "ev.shop", True),
        ("ev.>", "ev", False),
        (">", "ev", True),
        ("ev.shop.*", "ev.shop", False),
    ],
)
def test_a_filter_stands_for_subjects_as_nats_has_it(filter_: str, subject: str, expected: bool) -> None:
    assert matches(filter_, subject) is expected
