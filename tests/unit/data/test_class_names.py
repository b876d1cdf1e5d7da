"""Class names: read from files, told apart, and found again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.class_names import ClassLookup, as_given, read_class_names, told_apart
from data.errors import ClassNamesError
from tests.imagenet_names import CRANES, imagenet_like_names

NAMES = imagenet_like_names()
FEW = st.lists(st.sampled_from(["a", "b", "a (0)", "a (1)", "b (2)", "a (1) (1)"]), max_size=7)


def test_names_that_two_classes_share_get_their_ids_and_the_others_stay():
    apart = told_apart(NAMES)
    assert [apart[index] for index in CRANES] == ["crane (134)", "crane (517)"]
    assert sum(a != b for a, b in zip(apart, NAMES, strict=True)) == 2
    assert as_given(apart) == NAMES


@given(FEW)
def test_told_apart_names_all_differ_and_stay_as_they_are(names: list[str]):
    apart = told_apart(names)
    assert len(set(apart)) == len(names)
    assert told_apart(apart) == apart
    assert len(as_given(apart)) == len(names)


def test_a_name_that_only_looks_told_apart_is_as_it_was_given():
    names = ("Route", "Route (1)", "Highway (2)")
    assert as_given(told_apart(names)) == names


def test_a_shared_name_finds_all_its_classes_and_a_told_apart_one_its_own():
    lookup = ClassLookup(told_apart(NAMES))
    assert lookup.find("crane") == lookup.find("CRANE") == ("crane (134)", "crane (517)")
    assert lookup.find("crane (517)") == lookup.find("Crane (517)") == ("crane (517)",)
    assert lookup.find("Sunglass") == ("sunglass",)
    assert lookup.find("cran") == ()


def test_names_that_differ_in_case_only_are_found_by_their_own_case_first():
    lookup = ClassLookup(("Turkey", "turkey", "duck"))
    assert lookup.find("Turkey") == ("Turkey",)
    assert lookup.find("TURKEY") == ("Turkey", "turkey")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.txt", "cat\n\ndog\ncat\n"),
        ("b.txt", "\ufeffcat\r\ndog\r\ncat"),
        ("a.json", json.dumps(["cat", "dog", "cat"])),
        ("c.txt", json.dumps(["cat", "dog", "cat"])),
        ("config.json", json.dumps({"0": "cat", "1": "dog", "2": "cat"})),
    ],
)
def test_names_are_read_in_any_of_the_usual_forms(name: str, text: str, tmp_path: Path):
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_class_names(tmp_path / name) == ("cat (0)", "dog", "cat (2)")


@pytest.mark.parametrize(
    "text", ["", "one", '["one"]', '["a", 1]', '["a", " "]', "{", '{"1": "a", "2": "b"}', '"ab"', "[" * 9_999]
)
def test_files_that_name_no_two_classes_are_refused(text: str, tmp_path: Path):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ClassNamesError):
        read_class_names(tmp_path / "a.json")
    with pytest.raises(ClassNamesError):
        read_class_names(tmp_path / "missing.txt")
