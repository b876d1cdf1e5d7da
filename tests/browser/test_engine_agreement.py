"""Chromium and the native engine do the same task: the same batches, predictions and, within a tolerance, update."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from playwright.async_api import Browser

from tests.browser.conftest import serve
from tests.browser.recorded import recorded_task, run_natively

pytestmark = pytest.mark.asyncio(loop_scope="session")

TOLERANCE = 1e-5
"""Largest difference of any parameter's change, relative to the largest change."""


async def harness(
    browser: Browser, page: Path, objects: dict[str, bytes], *, isolated: bool, **command: object
) -> dict[str, object]:
    """What the harness answers; fails on any error that the page logs, such as a breach of the CSP."""
    async with serve(page, objects, isolated=isolated) as site:
        context = await browser.new_context()
        tab = await context.new_page()
        logged: list[str] = []
        tab.on("console", lambda message: logged.append(message.text) if message.type == "error" else None)
        await tab.goto(f"{site.url}/harness.html")
        assert await tab.evaluate("document.body.dataset.isolated") == str(isolated).lower()
        answer = json.loads(await tab.evaluate("command => window.harness(command)", command))
        await context.close()
        assert [line for line in logged if "favicon" not in line and "404" not in line] == []
    assert isinstance(answer, dict)
    return answer


@pytest.mark.parametrize(("isolated", "threads"), [(False, 1), (True, 1), (True, 2)])
async def test_a_task_in_chromium_agrees_with_the_native_engine(
    chromium: Browser, harness_page: Path, isolated: bool, threads: int
) -> None:
    recorded = recorded_task()
    native, native_batches = run_natively(recorded)
    task = recorded.task.model_dump(mode="json")
    answer = await harness(
        chromium, harness_page, recorded.objects, isolated=isolated, task=task, threads=threads, cycles=0
    )

    metrics = answer["metrics"]
    assert isinstance(metrics, dict)
    assert native.metrics.mismatched_images > 0
    assert metrics["predictions"] == list(native.metrics.predictions)
    assert answer["batches"] == native_batches
    for name in ("examples", "mismatched_images", "trained_images"):
        assert metrics[name] == getattr(native.metrics, name)
    assert metrics["loss_last"] == pytest.approx(native.metrics.loss_last, rel=1e-4)
    delta = np.array(answer["delta"], np.float32)
    difference = np.abs(delta - native.delta).max() / np.abs(native.delta).max()
    print(f"largest difference {difference:.2e} of the largest change")
    assert difference < TOLERANCE


async def test_hundreds_of_get_load_train_cycles_do_not_hang(chromium: Browser, harness_page: Path) -> None:
    recorded = recorded_task()
    task = recorded.task.model_dump(mode="json")
    answer = await harness(chromium, harness_page, recorded.objects, isolated=False, task=task, threads=1, cycles=400)
    losses = answer["losses"]
    assert isinstance(losses, list)
    assert len(losses) == 400
    assert losses[-1] < losses[0]
