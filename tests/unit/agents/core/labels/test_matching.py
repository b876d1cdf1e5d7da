from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agents.core.labels.matching import Ambiguous, LabelMatcher, Matched, Rejected, normalise

IMAGENET = (
    "tabby, tabby cat",
    "tiger cat",
    "sea lion",
    "lion, king of beasts, Panthera leo",
    "crane",
    "crane (bird)",
    "hotdog, hot dog, red hot",
    "ram, tup",
    "T-shirt/top",
    "ankle boot",
    "maillot",
    "maillot, tank suit",
    "Border collie",
    "café",
    "dress",
)


@pytest.fixture(scope="module")
def matcher() -> LabelMatcher:
    return LabelMatcher(IMAGENET)


def named(matcher: LabelMatcher, answer: str | None) -> tuple[str, str]:
    verdict = matcher.match(answer)
    assert isinstance(verdict, Matched), verdict
    return matcher.classes[verdict.index], verdict.how


@pytest.mark.parametrize(
    ("answer", "expected", "how"),
    [
        ("tabby, tabby cat", "tabby, tabby cat", "exact"),
        ("maillot", "maillot", "exact"),
        ("tabby", "tabby, tabby cat", "synonym"),
        ("Tabby Cat", "tabby, tabby cat", "synonym"),
        ("a tabby.", "tabby, tabby cat", "synonym"),
        ("This is a tabby cat", "tabby, tabby cat", "synonym"),
        ("It's a tabby", "tabby, tabby cat", "synonym"),
        ("Label: tabby", "tabby, tabby cat", "synonym"),
        ("tabbies", "tabby, tabby cat", "synonym"),
        ("tabby cat, tabby", "tabby, tabby cat", "synonym"),
        ("t shirt", "T-shirt/top", "synonym"),
        ("T-SHIRT/TOP", "T-shirt/top", "synonym"),
        ("panthera LEO", "lion, king of beasts, Panthera leo", "synonym"),
        ("dresses", "dress", "synonym"),
        ("cafe", "café", "synonym"),
        ("ankel boot", "ankle boot", "fuzzy"),
        ("collie border", "Border collie", "fuzzy"),
        ("border colie", "Border collie", "fuzzy"),
    ],
)
def test_an_answer_that_means_one_class_is_matched(matcher: LabelMatcher, answer: str, expected: str, how: str):
    assert named(matcher, answer) == (expected, how)


@pytest.mark.parametrize(
    "answer",
    [
        *(None, "", "  ", "???", "I don't know", "I don’t know.", "unknown", "None", "none of the above", "N/A"),
        *("not sure", "I cannot tell", "can't say", "no idea", "other", "It is not a tabby"),
        *("unable to determine", "idk"),
    ],
)
def test_an_answer_that_admits_not_to_know_is_unknown(matcher: LabelMatcher, answer: str | None):
    verdict = matcher.match(answer)
    assert isinstance(verdict, Rejected)
    assert verdict.reason == "unknown"


@pytest.mark.parametrize("answer", ["helicopter", "tram", "boot", "dog house", "cat", "shirt", "lioness statue"])
def test_part_of_a_name_or_another_thing_is_no_class(matcher: LabelMatcher, answer: str):
    verdict = matcher.match(answer)
    assert isinstance(verdict, Rejected)
    assert verdict.reason == "not_a_class"


def test_classes_that_come_near_are_offered(matcher: LabelMatcher):
    verdict = matcher.match("boot")
    assert isinstance(verdict, Rejected)
    assert matcher.classes[verdict.candidates[0]] == "ankle boot"
    cats = matcher.match("cat")
    assert isinstance(cats, Rejected)
    assert {matcher.classes[index] for index in cats.candidates} >= {"tabby, tabby cat", "tiger cat"}


def test_a_synonym_of_two_classes_is_ambiguous(matcher: LabelMatcher):
    verdict = matcher.match("Crane")
    assert isinstance(verdict, Ambiguous)
    assert {matcher.classes[index] for index in verdict.candidates} == {"crane", "crane (bird)"}


def test_two_classes_with_one_name_are_ambiguous():
    assert LabelMatcher(["crane", "crane", "lion"]).match("crane") == Ambiguous((0, 1))


def test_an_answer_that_names_two_classes_is_ambiguous(matcher: LabelMatcher):
    verdict = matcher.match("tabby or sea lion")
    assert isinstance(verdict, Ambiguous)
    assert {matcher.classes[index] for index in verdict.candidates} == {"tabby, tabby cat", "sea lion"}


def test_a_spelling_close_to_two_classes_is_ambiguous():
    verdict = LabelMatcher(["black leopard", "black leopards cat", "black leoparda"]).match("black leopardo")
    assert isinstance(verdict, Ambiguous)


def test_the_threshold_decides_what_is_close():
    classes = ["goldfish", "beagle"]
    assert isinstance(LabelMatcher(classes, threshold=75).match("golfisch"), Matched)
    assert isinstance(LabelMatcher(classes, threshold=99).match("golfisch"), Rejected)


def test_classes_whose_names_say_not_to_know_can_be_answered():
    matcher = LabelMatcher(["none", "forget-me-not", "other"])
    assert [named(matcher, answer)[0] for answer in ("None", "forget me not", "other")] == list(matcher.classes)


def test_names_in_other_scripts_are_words_too():
    matcher = LabelMatcher(["собака", "кошка", "犬"])
    assert named(matcher, "Собака")[0] == "собака"
    assert named(matcher, "犬") == ("犬", "exact")


@given(st.text(max_size=60))
@example("ANKLE:BOOT")
@example("crane")
def test_any_text_gets_a_verdict_that_spaces_and_points_around_it_do_not_change(text: str):
    matcher = LabelMatcher(IMAGENET)
    verdict = matcher.match(normalise(text))
    assert verdict == matcher.match(f"  {normalise(text)} . ")
    assert isinstance(matcher.match(text), Matched | Ambiguous | Rejected)


@given(st.sampled_from(IMAGENET), st.sampled_from(["{}", "{}.", " {} ", "The {}"]))
def test_every_class_matches_its_own_name(name: str, form: str):
    verdict = LabelMatcher(IMAGENET).match(form.format(name))
    found = (verdict.index,) if isinstance(verdict, Matched) else getattr(verdict, "candidates", ())
    assert IMAGENET.index(name) in found
