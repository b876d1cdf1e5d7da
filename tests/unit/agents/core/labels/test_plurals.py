"""Plurals of an answer's noun are the class; words that only look alike are not."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agents.core.labels.matching import Ambiguous, LabelMatcher, Matched, Rejected
from agents.core.labels.plurals import plurals
from data.class_names import told_apart
from tests.imagenet_names import CRANES, imagenet_like_names

CLASSES = told_apart(imagenet_like_names())
MATCHER = LabelMatcher(CLASSES)


@pytest.mark.parametrize(
    ("singular", "plural"),
    [
        *(("ski", "skis"), ("potpie", "potpies"), ("tabby", "tabbies"), ("daisy", "daisies"), ("key", "keys")),
        *(("bus", "buses"), ("lens", "lenses"), ("menu", "menus"), ("iris", "irises"), ("gas", "gases")),
        *(("box", "boxes"), ("dress", "dresses"), ("bench", "benches"), ("brush", "brushes"), ("shoe", "shoes")),
        *(("wolf", "wolves"), ("knife", "knives"), ("scarf", "scarves"), ("scarf", "scarfs"), ("reef", "reefs")),
        *(("potato", "potatoes"), ("piano", "pianos"), ("snowman", "snowmen"), ("mouse", "mice"), ("ox", "oxen")),
        *(("cactus", "cacti"), ("cactus", "cactuses"), ("taxi", "taxis"), ("axe", "axes"), ("hot dog", "hot dogs")),
        *(("wine glass", "wine glasses"), ("magnifying glass", "magnifying glasses"), ("maillot", "maillots")),
        *(("jean", "jeans"), ("trouser", "trousers"), ("swimming trunk", "swimming trunks")),
    ],
)
def test_a_plural_means_its_class_and_a_class_in_the_plural_one_of_it(singular: str, plural: str):
    assert LabelMatcher([singular, "zebra"]).match(plural) == Matched(0, "synonym")
    own = plural.split()[-1] in {"glasses", "trunks"}
    expected = Rejected if own else Matched
    assert isinstance(LabelMatcher([plural, "zebra"]).match(singular), expected)


@pytest.mark.parametrize(
    ("answer", "name"),
    [
        *(("glasses", "glass"), ("glass", "glasses"), ("dark glass", "dark glasses"), ("news", "new"), ("new", "news")),
        *(("boxers", "boxer"), ("trunks", "trunk"), ("short", "shorts"), ("arms", "arm"), ("spectacle", "spectacles")),
        *(("len", "glens"), ("bus", "busby"), ("lens", "lent"), ("bu", "bus ticket"), ("princess", "prince")),
        *(("bras", "brass"), ("eagle", "beagle"), ("eagles", "beagle"), ("cartoon", "carton"), ("planet", "plane")),
        *(
            ("stock", "sock"),
            ("whisky", "whisk"),
            ("crater", "crate"),
            ("ram", "tram"),
            ("pas", "pass"),
            ("gras", "grass"),
        ),
        *(("cares", "caress"), ("asses", "ash"), ("species", "specy's"), ("genus", "gent"), ("moose", "mouse")),
    ],
)
def test_words_that_only_look_alike_are_not_matched(answer: str, name: str):
    assert isinstance(LabelMatcher([name, "zebra"]).match(answer), Rejected)


def test_what_two_classes_could_be_one_of_is_ambiguous():
    assert LabelMatcher(["axe", "axis", "zebra"]).match("axes") == Ambiguous((0, 1))


@pytest.mark.parametrize(
    ("answer", "index"),
    [
        *(("skis", 795), ("potpies", 964), ("sunglasses", 837), ("Sunglass", 836), ("dark glasses", 837)),
        *(("a boxer", 242), ("blue jeans", 608), ("lens caps", 622), ("trolleybuses", 874), ("hotdogs", 934)),
        *(("hot dogs and hotdogs", 934), ("swimming trunks", 842), ("Daisies.", 985), ("maillot", 638)),
    ],
)
def test_answers_about_a_thousand_classes(answer: str, index: int):
    if answer == "maillot":
        assert MATCHER.match("Maillot") == Ambiguous((638, 639))
    verdict = MATCHER.match(answer)
    assert isinstance(verdict, Matched)
    assert verdict.index == index


@pytest.mark.parametrize("answer", ["eagle", "eagles", "glasses", "boxers", "lens", "planet", "trunk", "bus", "news"])
def test_other_things_are_none_of_a_thousand_classes(answer: str):
    assert isinstance(MATCHER.match(answer), Rejected)


@pytest.mark.parametrize("answer", ["crane", "Crane", "a crane", "cranes"])
def test_the_name_that_two_classes_share_means_both_and_with_its_id_one(answer: str):
    assert MATCHER.match(answer) == Ambiguous(CRANES)
    assert MATCHER.match("crane (517)") == Matched(517, "exact")
    assert MATCHER.match("Crane 134") == Matched(134, "synonym")
    assert isinstance(MATCHER.match("517"), Rejected)


@example(836, True)
@given(st.integers(0, 999), st.booleans())
def test_a_class_in_singular_or_plural_is_never_another_class(index: int, in_plural: bool):
    for synonym in CLASSES[index].split(", "):
        *before, last = synonym.split()
        for form in plurals(last) if in_plural else {last}:
            answer = " ".join([*before, form])
            verdict = MATCHER.match(answer)
            named = (verdict.index,) if isinstance(verdict, Matched) else verdict.candidates
            # "Sunglasses" are a class of their own beside "sunglass".
            own_name = any(answer in CLASSES[other].split(", ") for other in named)
            assert index in named or own_name or isinstance(verdict, Rejected), (answer, verdict)
