"""Chromium and the native engine do the same task: the same batches, predictions and, within a tolerance, update."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from playwright.async_api import Browser

from artifacts.base_model import load_base
from artifacts.build import BuildOptions, build_artifacts
from artifacts.manifest import load_manifest
from artifacts.optimizer import build_optimizer
from tests.browser.conftest import serve
from tests.browser.recorded import ARTIFACTS, RecordedTask, recorded_task, run_natively

pytestmark = pytest.mark.asyncio(loop_scope="session")

TOLERANCE = 1e-5
"""Largest difference of any parameter's change, relative to the largest change."""
SPLIT_TOLERANCE = 1e-4
"""The same over three epochs on activations that the two engines computed each for itself."""


async def harness(
    browser: Browser, page: Path, *recorded: RecordedTask, isolated: bool = False, threads: int = 1, cycles: int = 0
) -> list[Any]:
    """What the harness answers for these tasks; fails on any error that the page logs, such as a breach of the CSP."""
    objects = {digest: body for one in recorded for digest, body in one.objects.items()}
    async with serve(page, objects, isolated=isolated) as site:
        context = await browser.new_context()
        tab = await context.new_page()
        logged: list[str] = []
        tab.on("console", lambda message: logged.append(message.text) if message.type == "error" else None)
        await tab.goto(f"{site.url}/harness.html")
        assert await tab.evaluate("document.body.dataset.isolated") == str(isolated).lower()
        tasks = [one.task.model_dump(mode="json") for one in recorded]
        command = {"tasks": tasks, "threads": threads, "cycles": cycles}
        answer = json.loads(await tab.evaluate("command => window.harness(command)", command))
        await context.close()
        # The harness has no icon; a browser asks for one nevertheless.
        assert [line for line in logged if "404" not in line] == []
    assert isinstance(answer, list)
    return answer


@pytest.mark.parametrize(("isolated", "threads"), [(False, 1), (True, 1), (True, 2)])
async def test_a_task_in_chromium_agrees_with_the_native_engine(
    chromium: Browser, harness_page: Path, isolated: bool, threads: int
) -> None:
    recorded = recorded_task()
    native, native_batches = run_natively(recorded)
    (answer,) = await harness(chromium, harness_page, recorded, isolated=isolated, threads=threads)

    metrics = answer["metrics"]
    assert native.metrics.mismatched_images > 0
    assert metrics["predictions"] == list(native.metrics.predictions)
    assert answer["batches"] == native_batches
    for name in ("examples", "mismatched_images", "trained_images"):
        assert metrics[name] == getattr(native.metrics, name)
    assert metrics["loss_last"] == pytest.approx(native.metrics.loss_last, rel=1e-5)
    difference = np.abs(delta_of(answer) - native.delta).max() / np.abs(native.delta).max()
    print(f"largest difference {difference:.2e} of the largest change")
    assert difference < TOLERANCE


@pytest.mark.parametrize("mode", ["head", "last-1"])
async def test_a_split_model_in_chromium_agrees_with_the_native_engine(
    chromium: Browser, harness_page: Path, tmp_path: Path, mode: str
) -> None:
    """Both run the frozen part once for each image and train the rest on its activations, over several epochs."""
    base = load_base(str(ARTIFACTS / "base"))
    build_artifacts(base, BuildOptions(mode, learning_rate=0.03), tmp_path, command="tests")
    recorded = recorded_task(tmp_path, epochs=3)
    native, _ = run_natively(recorded, tmp_path)
    (answer,) = await harness(chromium, harness_page, recorded)
    assert load_manifest(tmp_path).prefix is not None
    assert native.metrics.mismatched_images > 0
    assert answer["metrics"]["predictions"] == list(native.metrics.predictions)
    assert answer["metrics"]["trained_images"] == native.metrics.trained_images
    assert np.abs(delta_of(answer) - native.delta).max() / np.abs(native.delta).max() < SPLIT_TOLERANCE


async def test_hundreds_of_get_load_train_cycles_do_not_hang(chromium: Browser, harness_page: Path) -> None:
    losses = await harness(chromium, harness_page, recorded_task(), cycles=400)
    assert len(losses) == 400
    assert losses[-1] < losses[0]


async def test_adam_takes_nothing_from_one_task_into_the_next(chromium: Browser, harness_page: Path) -> None:
    adam = build_optimizer("adamw", learning_rate=1e-3)
    recorded = recorded_task(optimizer=adam, stateless=False, learning_rate=1e-3)
    first, second = await harness(chromium, harness_page, recorded, recorded)
    assert np.abs(delta_of(first)).max() > 0
    assert first["delta"] == second["delta"]


async def test_a_round_with_another_learning_rate_takes_effect_in_the_same_engine(
    chromium: Browser, harness_page: Path
) -> None:
    tiny = recorded_task(learning_rate=3e-5)
    usual, slow, again = await harness(chromium, harness_page, recorded_task(), tiny, recorded_task())
    assert 0 < np.abs(delta_of(slow)).max() < 0.01 * np.abs(delta_of(usual)).max()
    assert again["delta"] == usual["delta"]


async def test_after_a_model_that_is_no_number_the_next_task_is_trained_as_ever(
    chromium: Browser, harness_page: Path
) -> None:
    size = (ARTIFACTS / "trainable.f32").stat().st_size // 4
    broken = recorded_task(base=np.full(size, np.nan, "<f4").tobytes())
    usual, spoiled, again = await harness(chromium, harness_page, recorded_task(), broken, recorded_task())
    # JSON has no NaN.
    assert set(spoiled["delta"]) == {None}
    assert again["delta"] == usual["delta"]


def delta_of(answer: dict[str, Any]) -> NDArray[np.float32]:
    return np.array(answer["delta"], np.float32)
