from __future__ import annotations

import numpy as np
import pytest

from artifacts.default_task import DEFAULT_DIRECTORY
from artifacts.manifest import load_manifest
from artifacts.pixels import pixel_table
from benchmarks.torch_loop import NativeEngine, Plan, TorchEngine, load_held_out, load_users, run


def test_torch_and_the_native_engine_learn_the_same_model() -> None:
    manifest = load_manifest(DEFAULT_DIRECTORY)
    initial = np.fromfile(DEFAULT_DIRECTORY / manifest.files["trainable"].path, dtype="<f4")
    table = pixel_table(manifest.model.mean, manifest.model.std)
    users, (images, labels) = load_users(6, 20, seed=0), load_held_out("B")
    engines = TorchEngine(manifest, DEFAULT_DIRECTORY), NativeEngine(manifest, DEFAULT_DIRECTORY)
    first, second = (
        list(run(engine, initial, table, users, (images[:500], labels[:500]), Plan(rounds=2))) for engine in engines
    )
    assert [row.mismatches for row in first] == [row.mismatches for row in second]
    assert [row.accuracy for row in first] == pytest.approx([row.accuracy for row in second], abs=0.002)
    assert first[2].accuracy > first[0].accuracy + 0.02
    np.testing.assert_allclose(engines[0].parameters(), engines[1].parameters(), atol=1e-5)
    assert not np.allclose(engines[0].parameters(), initial, atol=1e-3)
