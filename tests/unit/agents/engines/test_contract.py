"""What every engine has to do, whatever it runs on: the suite that a new engine is added to by being there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from agents.core.learning.contracts import Engine
from agents.core.learning.kinds import open_kind
from agents.engines import choose, engines
from artifacts.default_task import DEFAULT_DIRECTORY
from artifacts.manifest import ArtifactManifest, artifact_paths, load_manifest
from bus.errors import FedbusError

MANIFEST = load_manifest(DEFAULT_DIRECTORY)
BASE = np.fromfile(DEFAULT_DIRECTORY / MANIFEST.files["trainable"].path, "<f4").astype(np.float32)
KIND = open_kind(MANIFEST.kind, MANIFEST.model)
IMAGES = np.random.default_rng(5).integers(0, 256, (4, 28, 28, 1), np.uint8)
LABELS = np.array([7, 0, 3, 7])
RATE = MANIFEST.optimizer.learning_rate
Open = Callable[[], Engine]


def opened(name: str, manifest: ArtifactManifest, folder: Path) -> Engine:
    choice = choose(name, manifest.offered)
    paths = artifact_paths(manifest, folder)
    # Exactly the files that it says that it opens: a client has fetched no others.
    files = {role: paths[role] for role in choice.files(manifest)}
    return choice.maker.open(manifest, files, threads=1)


@pytest.fixture(params=engines())
def engine(request: pytest.FixtureRequest) -> Open:
    """Opens engines of one name, with the shipped model."""
    obstacle = engines()[request.param].why_not()
    if obstacle is not None:
        pytest.skip(obstacle)
    return lambda: opened(request.param, MANIFEST, DEFAULT_DIRECTORY)


def features(engine: Engine, images: NDArray[np.uint8] = IMAGES) -> NDArray[np.float32]:
    return engine.features(KIND.inputs(images))


def trained(engine: Engine, rate: float = RATE, *, steps: int = 2) -> NDArray[np.float32]:
    """The parameters after some steps from the base model."""
    engine.begin(BASE, rate)
    for _ in range(steps):
        engine.train_step(features(engine), LABELS)
    return engine.parameters()


def test_parameters_come_back_as_they_were_set(engine: Open) -> None:
    one, other = engine(), np.arange(len(BASE), dtype=np.float32)
    for values in (BASE, other, BASE):
        one.begin(values, None)
        assert np.array_equal(one.parameters(), values)


def test_parameters_are_a_copy(engine: Open) -> None:
    one = engine()
    one.begin(BASE, RATE)
    before = one.parameters()
    one.train_step(features(one), LABELS)
    assert np.array_equal(before, BASE)


def test_predicting_gives_one_row_for_each_example_and_changes_nothing(engine: Open) -> None:
    one = engine()
    one.begin(BASE, None)
    outputs = one.predict(features(one))
    assert outputs.shape == (4, len(MANIFEST.model.classes))
    assert outputs.dtype == np.float32
    assert np.array_equal(one.predict(features(one)), outputs)
    assert np.array_equal(one.parameters(), BASE)


def test_an_example_is_predicted_alike_alone_and_among_others(engine: Open) -> None:
    one = engine()
    one.begin(BASE, None)
    together = one.predict(features(one))
    alone = np.concatenate([one.predict(features(one, IMAGES[at : at + 1])) for at in range(4)])
    np.testing.assert_allclose(alone, together, rtol=1e-5, atol=1e-5)


def test_the_loss_is_that_of_the_kind_of_task_with_the_artifacts_smoothing(engine: Open) -> None:
    one = engine()
    one.begin(BASE, RATE)
    outputs = one.predict(features(one))
    every = np.stack([KIND.losses(outputs, np.full(4, label)) for label in range(outputs.shape[1])])
    smoothing = MANIFEST.label_smoothing
    expected = (1 - smoothing) * KIND.losses(outputs, LABELS).mean() + smoothing * every.mean()
    assert one.train_step(features(one), LABELS) == pytest.approx(expected, rel=1e-5)


def test_steps_lower_the_loss(engine: Open) -> None:
    one = engine()
    one.begin(BASE, RATE)
    losses = [one.train_step(features(one), LABELS) for _ in range(5)]
    assert losses[-1] < losses[0]


def test_the_first_step_is_proportional_to_the_learning_rate(engine: Open) -> None:
    one = engine()
    small, large = (trained(one, rate, steps=1) - BASE for rate in (0.01, 0.1))
    np.testing.assert_allclose(10 * small, large, atol=1e-5)
    assert np.abs(large).max() > 1e-3


def test_a_task_takes_nothing_from_the_one_before(engine: Open) -> None:
    one = engine()
    first = trained(one)
    trained(one, 10 * RATE)
    assert np.array_equal(trained(one), first)


def test_two_engines_give_the_same_bits(engine: Open) -> None:
    assert np.array_equal(trained(engine()), trained(engine()))


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), 1e-60])
def test_a_rate_that_is_no_positive_number_is_refused(engine: Open, rate: float) -> None:
    with pytest.raises(FedbusError):
        engine().begin(BASE, rate)


def test_what_does_not_fit_the_model_is_refused(engine: Open) -> None:
    one = engine()
    with pytest.raises(FedbusError):
        one.begin(BASE[:-1], RATE)
    one.begin(BASE, RATE)
    with pytest.raises(FedbusError):
        one.train_step(features(one), LABELS[:-1])
    with pytest.raises(FedbusError):
        one.features(KIND.inputs(IMAGES)[:, :, 1:])


def test_a_damaged_file_is_refused(engine: Open, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    name = request.node.callspec.params["engine"]
    for file in MANIFEST.files_of(engines()[name].opens).values():
        (tmp_path / file.path).write_bytes(b"nothing of the kind")
    with pytest.raises(FedbusError):
        opened(name, MANIFEST, tmp_path)
