from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.dataset import Dataset, DatasetManifest, ImageEntry, ImageFormat, load_dataset
from data.errors import PartitionError
from data.fashion_mnist import USERS
from data.partition import Partition, by_folder, class_counts, dirichlet, iid, in_order, partition, pathological

LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 200))
SCHEMES: list[Callable[[int, int], Partition]] = [
    lambda users, each: in_order(2_000, users, each),
    lambda users, each: iid(2_000, users, each, seed=1),
    lambda users, each: dirichlet(LABELS, users, each, alpha=0.3, seed=1),
    lambda users, each: pathological(LABELS, users, each, classes=2, seed=1),
]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(("users", "each"), [(100, 20), (4, 5), (1, 2_000), (7, 13)])
def test_users_have_their_number_of_images_and_no_image_in_common(
    scheme: Callable[[int, int], Partition], users: int, each: int
) -> None:
    found = scheme(users, each)
    assert [len(indices) for indices in found] == [each] * users
    flat = [index for indices in found for index in indices]
    assert len(set(flat)) == users * each
    assert min(flat) >= 0
    assert max(flat) < 2_000
    assert found == scheme(users, each)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_dataset_that_is_too_small_is_refused_with_a_hint(scheme: Callable[[int, int], Partition]) -> None:
    with pytest.raises(PartitionError, match="need 2001") as caught:
        scheme(3, 667)
    assert "fewer" in caught.value.hint
    with pytest.raises(PartitionError, match="at least one user"):
        scheme(0, 5)


def test_another_seed_gives_other_images() -> None:
    assert iid(2_000, 4, 5, seed=1) != iid(2_000, 4, 5, seed=2)
    assert dirichlet(LABELS, 4, 5, alpha=1, seed=1) != dirichlet(LABELS, 4, 5, alpha=1, seed=2)
    assert pathological(LABELS, 4, 5, classes=2, seed=1) != pathological(LABELS, 4, 5, classes=2, seed=2)


def test_a_small_alpha_gives_few_classes_and_a_large_one_all() -> None:
    shown = [
        (class_counts(dirichlet(LABELS, 20, 50, alpha=alpha, seed=0), LABELS, 10) > 0).sum(axis=1).mean()
        for alpha in (0.01, 0.3, 100.0)
    ]
    assert shown[0] < 3 < shown[1] < 8 < shown[2]


@pytest.mark.parametrize("classes", [1, 2, 4, 5, 10])
def test_each_user_sees_exactly_so_many_classes_where_the_images_allow_it(classes: int) -> None:
    counts = class_counts(pathological(LABELS, 100, 20, classes=classes, seed=3), LABELS, 10)
    assert set((counts > 0).sum(axis=1)) == {classes}
    assert set(counts[counts > 0].tolist()) == {20 // classes}


def test_uneven_shares_differ_by_one_image() -> None:
    counts = class_counts(pathological(LABELS, 50, 20, classes=3, seed=3), LABELS, 10)
    assert set(counts[counts > 0].tolist()) == {6, 7}


def test_impossible_numbers_of_classes_are_refused() -> None:
    with pytest.raises(PartitionError, match="cannot show"):
        pathological(LABELS, 4, 5, classes=6, seed=0)
    with pytest.raises(PartitionError, match="shows 10 classes"):
        pathological(LABELS, 4, 20, classes=11, seed=0)


def test_partitions_by_class_need_labels() -> None:
    for labels in (np.array([0, -1, 1]), np.array([], dtype=np.int64)):
        with pytest.raises(PartitionError):
            dirichlet(labels, 1, 1, alpha=1, seed=0)


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan")])
def test_alpha_has_to_be_positive(alpha: float) -> None:
    with pytest.raises(PartitionError, match="alpha"):
        dirichlet(LABELS, 4, 5, alpha=alpha, seed=0)


def test_each_top_level_folder_is_a_user() -> None:
    assert by_folder(["bob/cat/1.png", "al/2.png", "bob/dog/3.png"]) == [[1], [0, 2]]
    with pytest.raises(PartitionError, match="lies in no folder"):
        by_folder(["bob/1.png", "2.png"])


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.data())
def test_skewed_classes_never_lose_or_repeat_an_image(labels: list[int], data: st.DataObject) -> None:
    users = data.draw(st.integers(1, len(labels)))
    each = data.draw(st.integers(1, len(labels) // users))
    classes = data.draw(st.integers(1, min(each, len(set(labels)))))
    array = np.array(labels, dtype=np.int64)
    for found in (
        pathological(array, users, each, classes=classes, seed=0),
        dirichlet(array, users, each, alpha=0.1, seed=0),
    ):
        assert [len(indices) for indices in found] == [each] * users
        assert len({index for indices in found for index in indices}) == users * each


@pytest.mark.parametrize("scheme", ["in-order", "iid", "dirichlet:0.3", "pathological:2"])
def test_schemes_can_be_named(scheme: str) -> None:
    assert len(partition(load_dataset(USERS, verify=False), 100, 20, scheme, seed=0)) == 100


@pytest.mark.parametrize("scheme", ["", "random", "iid:3", "dirichlet", "dirichlet:x", "pathological:1.5"])
def test_an_unknown_scheme_is_refused_with_those_that_exist(scheme: str) -> None:
    with pytest.raises(PartitionError) as caught:
        partition(load_dataset(USERS, verify=False), 4, 5, scheme, seed=0)
    assert "pathological:CLASSES" in caught.value.hint


def test_by_folder_gives_so_many_users_so_many_images() -> None:
    sources = ["a/1", "a/2", "a/3", "b/1", "b/2", "c/1", "c/2"]
    manifest = DatasetManifest.model_construct(
        images=tuple(ImageEntry(id=source, source=source) for source in sources),
        classes=(),
        image=ImageFormat(size=1, channels=1),
    )
    dataset = Dataset(Path("nowhere"), manifest)
    assert partition(dataset, 3, 2, "by-folder", seed=0) == [[0, 1], [3, 4], [5, 6]]
    with pytest.raises(PartitionError, match="3 folders with 3 images"):
        partition(dataset, 3, 3, "by-folder", seed=0)


@pytest.mark.parametrize("scheme", ["dirichlet:0.3", "pathological:2"])
def test_a_partition_by_class_names_the_pictures_that_have_no_label(scheme: str) -> None:
    sample = load_dataset(USERS)
    first = sample.manifest.images[0].model_copy(update={"label": None, "source": "cats/x.png"})
    manifest = sample.manifest.model_copy(update={"images": (first, *sample.manifest.images[1:])})
    with pytest.raises(PartitionError, match=r"without one: cats/x\.png"):
        partition(Dataset(USERS, manifest), 4, 5, scheme, seed=0)
