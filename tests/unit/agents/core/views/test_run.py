"""The view of a run: what it says, what it leaves alone, and that its sums are those of its tasks."""

from __future__ import annotations

import json
from collections import Counter
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.core.views.as_json import round_json, run_json, tasks_json
from agents.core.views.round import RoundView
from agents.core.views.run import LATEST, RunView
from agents.words.events import Progress, RunFinished, UpdateSubmitted
from bus.recording.files import Recording
from tests.builders import RUN, START, assigned, config, labelled, planned, run_started
from tests.vectors.run_views import (
    NATIVE,
    WEB,
    Case,
    begun,
    closed,
    evaluated,
    extended,
    plan_round,
    published,
    rejection,
    storm,
    update,
)


def states(view: RunView, number: int = 1) -> dict[str, str]:
    return {user: task.state for user, task in view.rounds[number].tasks.items()}


def check_sums(one: RoundView) -> None:
    """Everything that is counted along the way is what counting anew gives."""
    tasks = one.tasks.values()
    assert +one.counts == Counter(task.state for task in tasks)
    assert {task.user for task in tasks if task.counts} == set(one.rules.counted)
    assert one.mismatched_images == sum(task.mismatched_images for task in tasks if task.counts)
    assert one.trained_images == sum(task.trained_images for task in tasks if task.counts)
    assert one.refused == len(one.rules.refused)


def test_a_run_goes_from_waiting_to_its_end() -> None:
    case = Case(RunView(RUN))
    seen = [case.view.status]
    case.add(run_started(config(users=1)))
    seen.append(case.view.status)
    case.add(labelled("u0"))
    plan_round(case, 1, 1)
    seen.append(case.view.status)
    case.add(RunFinished(run=RUN, status="cancelled", reason="enough", rounds=0))
    assert [*seen, case.view.status] == ["waiting", "labelling", "running", "cancelled"]


def test_a_round_goes_from_its_start_to_its_scores() -> None:
    case = begun()
    one, seen = case.view.rounds[1], []
    case.add(update("u0"))
    for data in (closed(case.add(update("u1")).sequence, missing=1), published(), evaluated(1, 0.75)):
        seen.append(one.phase)
        case.add(data)
    assert [*seen, one.phase] == ["open", "closed", "published", "evaluated"]
    times = [one.started_at, one.planned_at, one.ended_at, one.published_at, one.evaluated_at]
    assert times == sorted(at for at in times if at is not None)
    assert (one.seconds, one.evaluation_seconds) == (2.0, 0.25)
    assert one.ended == "quorum"


def test_a_user_s_task_says_where_it_is_and_when_it_got_there() -> None:
    case = begun()
    assert states(case.view) == {"u0": "assigned", "u1": "assigned", "u2": "assigned"}
    case.note("u0", "cli")
    given = case.add(update("u1"))
    assert states(case.view) == {"u0": "working", "u1": "submitted", "u2": "assigned"}
    case.add(closed(given.sequence))
    late = case.add(update("u0"))
    assert states(case.view) == {"u0": "stale", "u1": "accepted", "u2": "assigned"}
    task = case.view.rounds[1].tasks["u0"]
    assert (task.code, task.reason, task.refused_at) == ("stale", "the round had ended", late.time)
    assert task.assigned_at is not None
    assert task.submitted_at == late.time


def test_an_update_between_the_decision_to_close_and_its_event_is_stale() -> None:
    case = begun()
    case.add(update("u0"))
    last = case.add(update("u1"))
    case.add(update("u2"))
    assert case.view.rounds[1].mismatched_images == 6
    case.add(closed(last.sequence, missing=1))
    assert states(case.view) == {"u0": "accepted", "u1": "accepted", "u2": "stale"}
    assert case.view.rounds[1].mismatched_images == 4


def test_an_upload_that_the_gateway_refused_may_be_tried_again() -> None:
    case = begun()
    case.add(rejection("u0", "lease-1", "nonfinite", reason="a NaN"))
    task = case.view.rounds[1].tasks["u0"]
    assert (task.state, task.code, task.reason) == ("rejected", "nonfinite", "a NaN")
    case.note("u0")
    assert task.state == "working"
    case.add(update("u0"))
    case.add(rejection("u0", "lease-2", "duplicate"))
    assert task.state == "submitted"
    # The second lost a race, which is no failure.
    assert (case.view.rounds[1].rejections, case.view.rounds[1].refused) == (1, 0)


def test_what_the_aggregator_refused_leaves_the_sums() -> None:
    case = begun()
    given = case.add(update("u0"))
    case.add(rejection("u0", f"seq-{given.sequence}", "norm"))
    one = case.view.rounds[1]
    assert states(case.view)["u0"] == "rejected"
    assert (one.submitted, one.refused, one.mismatched_images, one.trained_images) == (1, 1, 0, 0)


def test_a_deadline_moves_with_every_extension_in_turn() -> None:
    case = begun()
    one = case.view.rounds[1]
    case.add(extended(2))
    assert one.rules.deadline == START + timedelta(seconds=60)
    case.add(extended(1))
    assert one.rules.deadline == START + timedelta(seconds=120)
    assert one.extended_at == [case.stream.now]


def test_clients_are_known_by_their_updates_and_by_what_they_are_doing() -> None:
    case = begun()
    case.note("u0", "tab-1")
    case.add(update("u1", "cli", NATIVE))
    tab, cli = case.view.clients["tab-1"], case.view.clients["cli"]
    assert (tab.engine, tab.kind, tab.updates) == ("", "other", 0)
    assert tab.progress is not None
    assert (cli.engine, cli.kind, cli.updates, cli.last_at) == (NATIVE, "native", 1, case.stream.now)
    case.add(update("u0", "tab-1", WEB))
    assert (tab.kind, tab.updates) == ("browser", 1)
    case.add(published())
    assert tab.progress is None


def test_the_newest_updates_come_first_and_only_a_few() -> None:
    case = begun(users=LATEST + 2)
    for index in range(LATEST + 2):
        case.add(update(f"u{index}"))
    assert list(case.view.latest) == [(1, f"u{index}") for index in range(LATEST + 1, 1, -1)]


def test_an_event_that_comes_again_changes_nothing(recorded_run: Recording) -> None:
    view, before = RunView.of(recorded_run.events[:20]), RunView(recorded_run.run)
    expected = run_json(view)
    for stored in recorded_run.events[:20]:
        assert before.fold(stored)
        assert not before.fold(stored)
    assert not any(view.fold(stored) for stored in recorded_run.events[:20])
    assert run_json(view) == run_json(before) == expected


@pytest.mark.parametrize(
    "data",
    [
        update("u0").model_copy(update={"run": "other"}),
        planned(3, 2, round=0),
        planned(3, 2, round=3),
        assigned("u0", round=3),
        run_started(config(users=9)),
    ],
)
def test_what_is_out_of_range_changes_nothing(data) -> None:
    case = begun()
    before = run_json(case.view)
    assert not case.view.fold(case.stream.add(data))
    assert run_json(case.view) == before


def test_nothing_comes_before_the_start_or_after_the_end() -> None:
    case = Case(RunView(RUN))
    case.add(planned(3, 2))
    assert case.view == RunView(RUN)
    case = begun()
    case.add(RunFinished(run=RUN, status="completed", rounds=0))
    before = run_json(case.view)
    case.add(update("u0"))
    case.note("u0")
    assert run_json(case.view) == before


@pytest.mark.parametrize(
    "said", [{"round": 2}, {"user": "u9"}, {"run": "other"}], ids=["no such round", "no such task", "another run"]
)
def test_progress_of_nothing_that_is_to_be_done_says_nothing(said: dict[str, object]) -> None:
    case = begun()
    before = run_json(case.view)
    progress = Progress(run=RUN, round=1, user="u0", client="c", phase="train", images_seen=1)
    case.view.note(progress.model_copy(update=said))
    assert run_json(case.view) == before


def test_progress_that_comes_late_does_not_bring_a_finished_task_back() -> None:
    case = begun()
    case.add(update("u0"))
    case.note("u0")
    assert states(case.view)["u0"] == "submitted"
    case.add(closed(case.view.sequence))
    case.note("u1")
    assert states(case.view)["u1"] == "assigned"


@settings(max_examples=60)
@given(st.integers(0, 1_000_000))
def test_the_sums_are_those_of_the_tasks_whatever_happens(seed: int) -> None:
    for one in storm(seed, 80).view.rounds.values():
        check_sums(one)


def test_the_recorded_run_is_told_in_figures(recorded_run: Recording) -> None:
    view = RunView.of(recorded_run.events)
    assert (view.status, view.users, len(view.labelled), len(view.rounds)) == ("completed", 4, 4, 2)
    assert [dict(+one.counts) for one in view.rounds.values()] == [
        {"accepted": 3, "stale": 1},
        {"accepted": 3, "assigned": 1},
    ]
    assert {one.client: one.kind for one in view.clients.values()} == {"browser-1": "browser", "native-1": "native"}
    given = sum(isinstance(one.event.data, UpdateSubmitted) for one in recorded_run.events)
    assert sum(one.updates for one in view.clients.values()) == given


def test_without_its_tasks_a_view_does_not_grow_with_the_users_and_some_tasks_can_be_asked_for() -> None:
    view, users = RunView(RUN), 10_000
    stream = Case(view).stream
    for data in (run_started(config(users=users)), planned(users, users)):
        view.fold(stream.add(data))
    for index in range(users):
        view.fold(stream.add(assigned(f"u{index}")))
    one = view.rounds[1]
    assert len(json.dumps(run_json(view, tasks=False))) < 3_000
    assert [task["user"] for task in tasks_json(one, start=9_998, count=5)] == ["u9998", "u9999"]
    assert round_json(one)["counts"]["assigned"] == len(tasks_json(one)) == users


def test_a_view_of_events_without_a_start_is_of_no_run(recorded_run: Recording) -> None:
    assert RunView.of(recorded_run.events[1:]) == RunView("")
