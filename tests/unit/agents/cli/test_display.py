"""What the command line says of a run: line by line, and as a live picture."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from rich.console import Console

from agents.cli.display import render, run_display
from agents.cli.lines import line_about
from agents.core.views.run import RunView
from agents.words.events import RoundFailed, RunFinished
from bus.recording.files import Recording
from bus.words.envelope import Stored
from tests.builders import RUN
from tests.vectors.run_views import begun, extended

LINES = """\
run {run}: 4 users, 2 rounds, seed 0
round 1 started
labelled 20 images of 4 users, 0 dropped
base model: accuracy 67.8% on 2000 held-out images
round 1: 1 of 4 updates
round 1: 2 of 4 updates
round 1: 3 of 4 updates
round 1 closed (quorum): 3 accepted, 1 missing
round 2 started
round 2: 1 of 4 updates
round 2: 2 of 4 updates
round 1: accuracy 72.5% (+4.7 points over the base model)
round 2: 3 of 4 updates
round 2 closed (quorum): 3 accepted, 1 missing
round 2: accuracy 74.2% (+6.3 points over the base model)
run completed
"""


def lines_about(events: Iterable[Stored], view: RunView) -> list[str]:
    lines = (line_about(stored, view) for stored in events if view.fold(stored))
    return [line for line in lines if line is not None]


def text_of(view: RunView) -> str:
    console = Console(width=100, highlight=False)
    with console.capture() as capture:
        console.print(render(view))
    return capture.get()


def test_a_run_is_told_line_by_line(recorded_run: Recording) -> None:
    lines = lines_about(recorded_run.events, RunView(recorded_run.run))
    assert lines == LINES.format(run=recorded_run.run).splitlines()


def test_an_event_that_comes_again_is_not_told_again(recorded_run: Recording) -> None:
    view = RunView(recorded_run.run)
    assert lines_about([*recorded_run.events, *recorded_run.events], view) == lines_about(
        recorded_run.events, RunView(recorded_run.run)
    )


def test_who_reads_on_from_an_event_sees_what_followed_it_with_the_right_figures(
    recorded_run: Recording, capsys: pytest.CaptureFixture[str]
) -> None:
    with run_display(recorded_run.run, since=14) as display:
        for stored in recorded_run.events:
            display.take(stored)
    first, *_ = capsys.readouterr().out.splitlines()
    assert first.endswith("round 1: 3 of 4 updates")


def test_the_live_picture_shows_the_open_round_and_who_is_at_work() -> None:
    case = begun()
    case.note("u1", "tab-1", loss=0.5)
    picture = text_of(case.view)
    assert f"{RUN}: 0 of 2 rounds done" in picture
    assert "0 of 3 updates, quorum 2" in picture
    assert "tab-1: u1 train 3 images, 0 trained, loss 0.500" in picture


def test_the_live_picture_ends_with_a_row_for_each_model(recorded_run: Recording) -> None:
    picture = text_of(RunView.of(recorded_run.events))
    assert picture.splitlines()[0].strip() == f"{recorded_run.run}: completed"
    assert [line.split()[:2] for line in picture.splitlines()[2:]] == [
        ["base", "67.8%"],
        ["1", "72.5%"],
        ["2", "74.2%"],
    ]


def test_more_time_for_a_round_is_worth_a_line() -> None:
    case = begun()
    stored = case.add(extended(1))
    assert line_about(stored, case.view) == "round 1: no quorum yet, extended until 00:02:00"


def test_a_failure_is_told_with_its_reason_and_code() -> None:
    case, reason = begun(), "the model cannot be made: the chunks are gone"
    stored = case.add(RoundFailed(run=RUN, round=1, reason=reason, code="object_missing"))
    assert line_about(stored, case.view) == f"round 1 failed: {reason} [object_missing]"
    case.add(RunFinished(run=RUN, status="failed", reason=f"round 1: {reason}", rounds=0))
    assert text_of(case.view).splitlines()[0].strip() == f"{RUN}: failed: round 1: {reason} [object_missing]"
