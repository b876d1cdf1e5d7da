"""Who is in a round, what its tasks say, when the next round starts and the run ends."""

from __future__ import annotations

import pytest

from agents.core.rounds.intents import AssignTasks, PlanRound, ReadDataset, Say
from agents.core.rounds.plan import RunState, learning_rate_of, quorum_of, task_spec
from agents.words.events import (
    EvaluationFailed,
    ModelEvaluated,
    ModelPublished,
    RoundClosed,
    RoundFailed,
    RoundStarted,
    RunFinished,
    Score,
)
from agents.words.run_config import RunDataset, UserShard
from bus.words.payload import Payload
from tests.builders import (
    ANY_REF,
    BASE_REF,
    RUN,
    START,
    Stream,
    assigned,
    config,
    labelled,
    planned,
    ref_of,
    run_started,
)

USERS = ("u0", "u1", "u2")
NEW_MODEL = ref_of(b"new model")


class Run:
    """A run under test with its stream."""

    def __init__(self, *, rounds: int = 2, fraction: float = 1.0, users: tuple[str, ...] = USERS) -> None:
        settings = config(rounds=rounds, users=len(users)).model_copy(update={"fraction": fraction})
        self.stream = Stream()
        self.state = RunState(run_started(settings), users)

    def fold(self, *payloads: Payload) -> Run:
        for data in payloads:
            self.state.fold(self.stream.add(data))
        return self


def published(round: int) -> ModelPublished:
    return ModelPublished(
        run=RUN,
        round=round,
        model=NEW_MODEL,
        parent=BASE_REF,
        inputs_digest=ANY_REF.sha256,
        strategy="fedavg",
        updates=3,
        examples=6,
    )


def evaluated(round: int) -> ModelEvaluated:
    score = Score(accuracy=0.5, loss=1.0)
    return ModelEvaluated(
        run=RUN, round=round, model=NEW_MODEL.sha256, images=2, base=score, updated=score, details=ANY_REF
    )


def closed(round: int) -> RoundClosed:
    return RoundClosed(run=RUN, round=round, reason="all", accepted=3, missing=0, rejected=0, through=1)


def done(round: int) -> tuple[Payload, ...]:
    return (RoundStarted(run=RUN, round=round), planned(3, 3, round=round), closed(round), published(round))


def test_nothing_happens_before_somebody_starts_the_first_round() -> None:
    assert Run().fold(*map(labelled, USERS)).state.decide() is None


def test_the_round_is_planned_once_every_picked_user_is_labelled() -> None:
    run = Run().fold(RoundStarted(run=RUN, round=1), labelled("u0"), labelled("u1"))
    assert run.state.decide() is None
    plan = run.fold(labelled("u2")).state.decide()
    assert isinstance(plan, PlanRound)
    assert (plan.users, plan.quorum, plan.base_model) == (USERS, 3, BASE_REF)


def test_a_user_whose_images_were_all_dropped_gets_no_task() -> None:
    run = Run().fold(RoundStarted(run=RUN, round=1), labelled("u0", (None, None)), labelled("u1"), labelled("u2"))
    plan = run.state.decide()
    assert isinstance(plan, PlanRound)
    assert plan.users == ("u1", "u2")


def test_a_round_without_any_usable_user_fails() -> None:
    run = Run().fold(RoundStarted(run=RUN, round=1), *(labelled(user, (None, None)) for user in USERS))
    intent = run.state.decide()
    assert isinstance(intent, Say)
    assert isinstance(intent.data, RoundFailed)


def test_tasks_that_are_missing_after_a_crash_are_assigned_and_no_others() -> None:
    run = Run().fold(RoundStarted(run=RUN, round=1), *map(labelled, USERS), planned(3, 3), assigned("u1"))
    intent = run.state.decide()
    assert isinstance(intent, AssignTasks)
    assert [task.user for task in intent.tasks] == ["u0", "u2"]
    assert run.fold(*intent.tasks).state.decide() is None


def test_task_seeds_depend_on_user_and_round() -> None:
    first = Run().fold(RoundStarted(run=RUN, round=1), *map(labelled, USERS), planned(3, 3)).state.decide()
    second = Run().fold(*done(1), RoundStarted(run=RUN, round=2), *map(labelled, USERS), planned(3, 3, round=2))
    again = second.state.decide()
    assert isinstance(first, AssignTasks)
    assert isinstance(again, AssignTasks)
    seeds = {task.seed for task in (*first.tasks, *again.tasks)}
    assert len(seeds) == 6


def test_the_next_round_starts_from_the_new_model() -> None:
    run = Run().fold(*map(labelled, USERS), *done(1))
    intent = run.state.decide()
    assert isinstance(intent, Say)
    assert intent.data == RoundStarted(run=RUN, round=2)
    plan = run.fold(intent.data).state.decide()
    assert isinstance(plan, PlanRound)
    assert plan.base_model == NEW_MODEL


def test_a_run_whose_last_model_nobody_will_evaluate_is_completed_and_says_why() -> None:
    lost = EvaluationFailed(run=RUN, round=1, model=NEW_MODEL.sha256, reason="no held-out images")
    run = Run(rounds=1).fold(*map(labelled, USERS), *done(1), lost.model_copy(update={"round": 0}))
    assert run.state.decide() is None
    intent = run.fold(lost).state.decide()
    assert isinstance(intent, Say)
    assert isinstance(intent.data, RunFinished)
    assert (intent.data.status, intent.data.rounds, intent.data.final_model) == ("completed", 1, NEW_MODEL)
    assert intent.data.reason == "the model of round 1 has no evaluation: no held-out images"
    scored = run.fold(evaluated(1)).state.decide()
    assert isinstance(scored, Say)
    assert isinstance(scored.data, RunFinished)
    assert scored.data.reason == ""
    assert run.fold(scored.data).state.decide() is None


def test_the_run_is_over_once_its_last_model_is_evaluated() -> None:
    run = Run(rounds=1).fold(*map(labelled, USERS), *done(1))
    assert run.state.decide() is None
    intent = run.fold(evaluated(1)).state.decide()
    assert isinstance(intent, Say)
    assert isinstance(intent.data, RunFinished)
    assert (intent.data.status, intent.data.rounds, intent.data.final_model) == ("completed", 1, NEW_MODEL)
    assert run.fold(intent.data).state.decide() is None


def test_a_failed_round_fails_the_run() -> None:
    run = Run().fold(RoundStarted(run=RUN, round=1), RoundFailed(run=RUN, round=1, reason="too few"))
    intent = run.state.decide()
    assert isinstance(intent, Say)
    assert isinstance(intent.data, RunFinished)
    assert intent.data.status == "failed"
    assert "too few" in intent.data.reason


def test_a_fraction_picks_the_same_users_every_time_and_others_in_another_round() -> None:
    users = tuple(f"u{index:02}" for index in range(40))
    state = Run(fraction=0.25, users=users).state
    assert len(state.picked(1)) == 10
    assert state.picked(1) == state.picked(1)
    assert state.picked(1) != state.picked(2)
    assert set(state.picked(1)) <= set(users)


@pytest.mark.parametrize(
    ("fraction", "users", "quorum"), [(1.0, 3, 3), (0.5, 3, 2), (0.5, 4, 2), (0.01, 3, 1), (0.7, 10, 7)]
)
def test_the_quorum_is_the_fraction_rounded_up(fraction: float, users: int, quorum: int) -> None:
    assert quorum_of(fraction, users) == quorum


def test_the_learning_rate_decays_after_the_first_round() -> None:
    settings = config(rounds=3)
    assert learning_rate_of(settings, 1) == settings.training.learning_rate
    assert learning_rate_of(settings, 3) == pytest.approx(settings.training.learning_rate * 0.75**2)


def test_a_plan_that_counts_users_without_labels_assigns_those_that_have_some() -> None:
    stream = Stream()
    state = RunState(run_started(config(users=2)), ("u0", "u1"))
    for data in (labelled("u0"), RoundStarted(run=RUN, round=1), planned(2, 2)):
        state.fold(stream.add(data))
    intent = state.decide()
    assert isinstance(intent, AssignTasks)
    assert [task.user for task in intent.tasks] == ["u0"]
    state.fold(stream.add(intent.tasks[0]))
    assert state.decide() is None


def test_the_next_round_names_what_the_strategy_kept_unless_it_starts_from_another_model() -> None:
    kept = published(1).model_copy(update={"server_state": ref_of(b"momenta")})
    begun = (RoundStarted(run=RUN, round=1), planned(3, 3), closed(1), kept)
    plain = Run().fold(*map(labelled, USERS), *begun, RoundStarted(run=RUN, round=2)).state.decide()
    assert isinstance(plain, PlanRound)
    assert (plain.base_model, plain.server_state) == (NEW_MODEL, kept.server_state)
    assert plain.planned(ANY_REF, START).server_state == kept.server_state
    other = RoundStarted(run=RUN, round=2, base_model=ANY_REF)
    elsewhere = Run().fold(*map(labelled, USERS), *begun, other).state.decide()
    assert isinstance(elsewhere, PlanRound)
    assert (elsewhere.base_model, elsewhere.server_state) == (ANY_REF, None)


def test_the_users_are_read_from_the_dataset_before_anything_is_planned() -> None:
    state = RunState(run_started(config(users=2)))
    assert state.decide() == ReadDataset(ANY_REF)
    users = tuple(UserShard(user=user, shard=ANY_REF) for user in ("u1", "u0"))
    state.open(RunDataset(classes=("a", "b"), users=users, held_out=ANY_REF).model_dump_json().encode())
    assert state.users == ("u1", "u0")
    assert state.decide() is None


@pytest.mark.parametrize(
    ("changes", "dataset", "reason"),
    [
        ({}, b"no dataset", "dataset: "),
        ({"strategy": "fedprox"}, b"", "there is no strategy 'fedprox'"),
        ({"strategy_settings": {"speed": 1}}, b"", "speed: there is no such setting"),
    ],
)
def test_a_run_that_cannot_be_opened_fails_with_the_reason(
    changes: dict[str, object], dataset: bytes, reason: str
) -> None:
    state = RunState(run_started(config(users=2).model_copy(update=changes)))
    state.open(dataset)
    intent = state.decide()
    assert isinstance(intent, Say)
    assert isinstance(intent.data, RunFinished)
    assert (intent.data.status, intent.data.rounds) == ("failed", 0)
    assert reason in intent.data.reason


def test_a_spec_says_what_the_config_and_the_plan_say() -> None:
    run = Run().fold(RoundStarted(run=RUN, round=1), *map(labelled, USERS))
    plan = run.state.decide()
    assert isinstance(plan, PlanRound)
    spec = task_spec(run.state.started, plan)
    training = run.state.started.config.training
    assert (spec.run, spec.round, spec.base_model, spec.optimizer) == (RUN, 1, BASE_REF, None)
    assert (spec.learning_rate, spec.epochs, spec.encoding) == (plan.learning_rate, training.epochs, training.encoding)
