"""What commands print fits a narrow terminal: no heading is cut, and a path stays in one piece."""

from __future__ import annotations

import io

import numpy as np
from rich.console import Console, RenderableType

from agents.audit.compare import compare
from agents.audit.report import build_report, summary_table
from agents.cli.display import render
from agents.cli.doctor import Finding, lines_about
from agents.cli.evaluate import comparison_table
from agents.core.learning.kinds import open_kind
from agents.core.views.run import RunView
from agents.runtime.shipped import DEFAULT_ARTIFACTS
from artifacts.manifest import load_manifest
from tests.unit.agents.audit.report.runs import a_run

NARROW = 60
MODEL = load_manifest(DEFAULT_ARTIFACTS)
COLUMNS = ["accuracy", "loss", "mismatched", "trained", "updates", "seconds"]


def printed(*what: RenderableType, soft_wrap: bool = False) -> list[str]:
    file = io.StringIO()
    console = Console(file=file, width=NARROW, highlight=False)
    for one in what:
        console.print(one, soft_wrap=soft_wrap)
    return file.getvalue().splitlines()


def test_a_path_that_doctor_names_stays_in_one_piece() -> None:
    path = "/home/somebody/" + "a-long-folder/" * 6 + "browser_client/dist/index.html"
    good, bad = Finding("built page", True, path), Finding("Chromium", False, "no Chromium found", f"look at {path}")
    lines = printed(*lines_about(good), *lines_about(bad), soft_wrap=True)
    assert lines == [f"ok       built page: {path}", "missing  Chromium: no Chromium found", f"         look at {path}"]


def test_the_table_of_a_run_fits() -> None:
    stream, _ = a_run(rounds=10)
    lines = printed(summary_table(build_report(RunView.of(stream.events), None)))
    assert ["model", *COLUMNS] in [line.split() for line in lines]
    assert any(line.startswith(" round 10") or line.startswith("round 10") for line in lines)
    assert max(map(len, lines)) <= NARROW


def test_the_live_picture_fits() -> None:
    stream, _ = a_run(rounds=10, finished=False)
    lines = printed(render(RunView.of(stream.events)))
    assert ["round", *COLUMNS] in [line.split() for line in lines]
    assert max(map(len, lines)) <= NARROW


def test_a_comparison_fits_and_tells_points_from_percent() -> None:
    labels = np.arange(20) % 2
    right = np.eye(2, dtype=np.float32)[labels]
    wrong = right[::-1].copy()
    wrong[:10] = right[:10]
    kind = open_kind(MODEL.kind, MODEL.model)
    result = compare(("a" * 99, "b" * 99), kind, (wrong, right), labels, ("shirt", "bag"))
    lines = printed(comparison_table(result))
    assert max(map(len, lines)) <= NARROW
    assert any("accuracy" in line and "+50.0 points" in line for line in lines)
    assert any("only this one right" in line for line in lines)
