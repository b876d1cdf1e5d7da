from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from agents.audit.report import Report, build_report, summary_table, write_report
from agents.audit.report.build import NoSuchRunError
from agents.audit.report.write import render_html
from agents.core.learning.scores import EvaluationDetails
from agents.core.views.run import RunView
from agents.words.events import RoundFailed, RoundStarted, UpdateSubmitted
from tests.builders import RUN, Stream, config, planned, run_started
from tests.unit.agents.audit.report.runs import CLASSES, IMAGES, a_run, model_of


def report_of(**options: bool | int):
    stream, details = a_run(**options)
    return report_on(stream, details)


def report_on(stream: Stream, details: dict[str, Any], **clients: int) -> Report:
    """The report of the stream's run; ``clients`` are those that were started, if that is known."""
    view = RunView.of(stream.events)
    newest = view.newest_evaluation
    known = EvaluationDetails.model_validate(details[newest.details.sha256]) if newest else None
    return build_report(view, known, clients=clients or None)


def test_the_json_has_the_promised_keys(tmp_path: Path):
    path, _ = write_report(report_of(), tmp_path / "new" / "folder")
    content = json.loads(path.read_text())
    promised = {
        *("run", "status", "seed", "users", "images_per_user", "augmentations"),
        *("clients", "base", "rounds", "final", "wall_seconds"),
    }
    assert promised <= content.keys()
    assert content["clients"].keys() == {"browser", "native", "other"}
    assert content["base"].keys() == {"accuracy", "loss"}
    round_keys = {
        *("round", "accuracy", "loss", "mismatched_images", "trained_images"),
        *("updates_accepted", "updates_missing", "seconds", "model_sha256"),
    }
    assert all(round_keys <= one.keys() for one in content["rounds"])
    assert {"accuracy", "model_sha256"} <= content["final"].keys()


def test_a_round_sums_over_its_accepted_updates_and_is_timed_from_start_to_model():
    first = report_of().rounds[0]
    assert (first.updates_accepted, first.updates_missing, first.updates_rejected) == (2, 0, 1)
    assert (first.mismatched_images, first.trained_images) == (4, 28)
    assert first.seconds == pytest.approx(3.25)
    assert first.evaluation_seconds == pytest.approx(0.5)
    assert first.model_sha256 == model_of(1).sha256


def test_clients_are_counted_by_the_engines_of_their_updates_unless_the_caller_knows():
    stream, details = a_run()
    assert report_on(stream, details).clients.model_dump() == {"browser": 1, "native": 1, "other": 0}
    assert report_on(stream, details, browser=2, native=0).clients.browser == 2


def test_a_client_with_an_engine_that_nobody_knows_is_counted_and_has_its_share_of_the_time():
    stream, details = a_run()
    for index, stored in enumerate(stream.events):
        if isinstance(stored.event.data, UpdateSubmitted):
            data = stored.event.data.model_copy(update={"engine": "abacus 2"})
            event = stored.event.model_copy(update={"data": data})
            stream.events[index] = dataclasses.replace(stored, event=event)
    report = report_on(stream, details)
    assert report.clients.model_dump() == {"browser": 0, "native": 0, "other": 2}
    assert report.time.overhead_share == report_of().time.overhead_share
    assert "2 other clients" in render_html(report)


def test_time_that_no_client_computes_is_overhead():
    report = report_of()
    assert report.time.labelling == pytest.approx(1.5)
    assert (report.time.predict, report.time.train) == (pytest.approx(1.0), pytest.approx(2.0))
    assert report.time.overhead_share == pytest.approx(1 - 3.0 / (2 * report.wall_seconds))


def test_labels_and_per_class_results_are_reported():
    report = report_of()
    assert report.labels is not None
    assert report.labels.dropped == {"unknown": 1}
    assert (report.labels.images, report.labels.prompt_tokens) == (6, 300)
    assert [one.name for one in report.per_class] == list(CLASSES)
    assert sum(one.images for one in report.per_class) == IMAGES
    assert report.confusion is not None
    right = sum(report.confusion.final[i][i] for i in range(len(CLASSES)))
    assert right / IMAGES == report.final.accuracy == report.rounds[-1].accuracy


def test_without_the_details_everything_else_is_reported():
    stream, details = a_run()
    report = build_report(RunView.of(stream.events), None)
    assert report == report_on(stream, details).model_copy(update={"per_class": (), "confusion": None})


def test_a_run_that_still_goes_on_has_a_report_too(tmp_path: Path):
    stream, details = a_run(rounds=1, finished=False)
    stream.add(RoundStarted(run=RUN, round=2))
    report = report_on(stream, details)
    assert report.status == "running"
    assert report.rounds[1].seconds is None
    assert report.final.model_sha256 == model_of(1).sha256
    assert write_report(report, tmp_path)[1].read_text().count("<tr>") >= 4


def test_a_run_of_which_only_the_start_is_known_can_be_written():
    stream = Stream()
    stream.add(run_started(config()))
    report = report_on(stream, {})
    assert report.base is None
    assert report.final.accuracy is None
    assert "svg" not in render_html(report)


def test_a_failed_round_says_why():
    stream, details = a_run(rounds=1, finished=False)
    stream.add(RoundStarted(run=RUN, round=2))
    stream.add(planned(3, 2, round=2))
    stream.add(RoundFailed(run=RUN, round=2, reason="0 of 3 updates were accepted"))
    report = report_on(stream, details)
    assert report.rounds[1].failed == "0 of 3 updates were accepted"
    assert report.rounds[1].updates_missing == 3
    assert "failed" in render_html(report)


def test_a_failure_with_a_code_is_reported_with_it_and_no_other_has_one():
    stream, details = a_run(rounds=1, finished=False)
    stream.add(RoundStarted(run=RUN, round=2))
    stream.add(planned(3, 2).model_copy(update={"round": 2}))
    stream.add(RoundFailed(run=RUN, round=2, reason="the chunks are gone", code="object_missing"))
    report = report_on(stream, details)
    assert (report.rounds[1].failed, report.rounds[1].code) == ("the chunks are gone", "object_missing")
    assert "failed object_missing" in render_html(report)
    assert report.model_dump_json().count('"code"') == 1


def test_events_without_a_start_are_refused():
    stream, _ = a_run()
    with pytest.raises(NoSuchRunError):
        build_report(RunView.of(stream.events[1:]), None)


def test_the_page_needs_no_network_and_escapes_what_the_run_says():
    page = render_html(report_of())
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", page)
    assert "<script" not in page
    assert "sandal <b>&" not in page
    assert page.count("data:image/svg+xml;base64,") == 4


def test_the_same_run_gives_the_same_page():
    assert render_html(report_of()) == render_html(report_of())


def test_the_table_has_a_row_for_the_base_model_and_each_round():
    console = Console(width=120, record=True, file=None, quiet=True)
    table = summary_table(report_of())
    with console.capture() as capture:
        console.quiet = False
        console.print(table)
    text = capture.get()
    assert "base" in text
    assert "round 2" in text
    assert f"{report_of().rounds[1].accuracy:.1%}" in text
