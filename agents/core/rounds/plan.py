"""The dispatcher's rules: who is in a round, what its tasks say, when the next round starts, when the run is over.

Pure: events go in through ``fold``, and ``decide`` answers with what has to be done next. The shell does it and the
resulting events come back through ``fold``.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np
from pydantic import ValidationError

from agents.core.learning.magnitudes import value_bound
from agents.core.rounds.intents import AssignTasks, Intent, PlanRound, ReadDataset, Say
from agents.core.rounds.settings import check_settings
from agents.words.events import (
    EvaluationFailed,
    ImagesLabelled,
    ModelEvaluated,
    ModelPublished,
    RoundClosed,
    RoundFailed,
    RoundPlanned,
    RoundStarted,
    RunFinished,
    RunStarted,
    TaskAssigned,
)
from agents.words.run_config import RunConfig, RunDataset, TaskSpec
from bus.errors import FedbusError
from bus.words.envelope import Stored
from bus.words.problems import what_is_wrong
from bus.words.values import Ref


@dataclass
class RoundFacts:
    """What the dispatcher knows of one round; ``since`` is the time of its first event."""

    since: datetime
    started: RoundStarted | None = None
    planned: RoundPlanned | None = None
    assigned: set[str] = field(default_factory=set)
    closed: bool = False
    failed: RoundFailed | None = None
    published: ModelPublished | None = None
    evaluated: bool = False
    unevaluated: EvaluationFailed | None = None


@dataclass
class RunState:
    """All that the dispatcher knows of one run.

    ``users`` are the names of the run's users in the order of its dataset, none before that was read; ``problem`` says
    why the run cannot go on.
    """

    started: RunStarted
    users: tuple[str, ...] = ()
    labelled: dict[str, ImagesLabelled] = field(default_factory=dict)
    rounds: dict[int, RoundFacts] = field(default_factory=dict)
    finished: RunFinished | None = None
    problem: str = ""

    @property
    def run(self) -> str:
        """The run's name."""
        return self.started.run

    def open(self, dataset: bytes) -> None:
        """Takes in the run's dataset object: it says who the users are. Sees, too, whether the run's settings exist."""
        try:
            check_settings(self.started.config)
            self.users = tuple(user.user for user in RunDataset.model_validate_json(dataset).users)
        except ValidationError as error:
            self.problem = f"dataset: {what_is_wrong(error)}"
        except FedbusError as error:
            self.problem = f"{error.message} ({error.hint})"

    def fold(self, stored: Stored) -> None:
        """Takes one event of this run in; folding it again changes nothing."""
        match stored.event.data:
            case ImagesLabelled() as data:
                self.labelled.setdefault(data.user, data)
            case RoundStarted() as data:
                facts = self._round(stored, data.round)
                facts.started = facts.started or data
            case RoundPlanned() as data:
                facts = self._round(stored, data.round)
                facts.planned = facts.planned or data
            case TaskAssigned() as data:
                self._round(stored, data.round).assigned.add(data.user)
            case RoundClosed() as data:
                self._round(stored, data.round).closed = True
            case RoundFailed() as data:
                facts = self._round(stored, data.round)
                if facts.published is None:
                    facts.failed = facts.failed or data
            case ModelPublished() as data:
                facts = self._round(stored, data.round)
                if facts.failed is None:
                    facts.published = facts.published or data
            case ModelEvaluated() as data:
                self._round(stored, data.round).evaluated = True
            case EvaluationFailed() as data:
                facts = self._round(stored, data.round)
                facts.unevaluated = facts.unevaluated or data
            case RunFinished() as data:
                self.finished = self.finished or data
            case _:
                pass

    def _round(self, stored: Stored, number: int) -> RoundFacts:
        return self.rounds.setdefault(number, RoundFacts(stored.time))

    def why_not(self, number: int) -> str | None:
        """Why round ``number`` cannot be started now, if so; that it was started before is no reason."""
        if self.finished is not None:
            return over(self.run, self.finished)
        rounds = self.started.config.rounds
        if number > rounds:
            return f"run {self.run} has {rounds} rounds, there is no round {number}"
        turn = self._turn()
        if (facts := self.rounds.get(turn)) is not None and facts.failed is not None:
            return f"round {turn} of run {self.run} has failed: {facts.failed.reason}"[:500]
        if number > turn:
            return f"round {number} of run {self.run} cannot come next: round {turn} has no model yet"
        return None

    def _turn(self) -> int:
        """The first round without a model."""
        number = 1
        while (facts := self.rounds.get(number)) is not None and facts.published is not None:
            number += 1
        return number

    def decide(self) -> Intent | None:
        """The next thing to do, or nothing until another event comes."""
        if self.finished is not None:
            return None
        if self.problem:
            return Say(RunFinished(run=self.run, status="failed", reason=self.problem[:500], rounds=0))
        if not self.users:
            return ReadDataset(self.started.dataset)
        number = self._turn()
        facts = self.rounds.get(number)
        last, rounds = number - 1, self.started.config.rounds
        if facts is None or facts.started is None:
            if last >= rounds:
                return self._finish(last)
            return Say(RoundStarted(run=self.run, round=number)) if last >= 1 else None
        if number > rounds:
            return self._finish(last)
        return self._go_on(number, facts)

    def _go_on(self, number: int, facts: RoundFacts) -> Intent | None:
        if facts.failed is not None:
            return Say(self._ended("failed", f"round {number}: {facts.failed.reason}"[:500], number - 1))
        if facts.closed or facts.started is None:
            return None
        picked = self.picked(number, facts.started.fraction)
        if facts.planned is None:
            return self._plan(number, facts.started, picked)
        if len(facts.assigned) < facts.planned.users:
            usable = (user for user in picked if self._usable(user))
            tasks = tuple(self._task(user, facts.planned) for user in usable if user not in facts.assigned)
            return AssignTasks(tasks) if tasks else None
        return None

    def _plan(self, number: int, started: RoundStarted, picked: tuple[str, ...]) -> Intent | None:
        if any(user not in self.labelled for user in picked):
            return None
        users = tuple(user for user in picked if self._usable(user))
        if not users:
            return Say(RoundFailed(run=self.run, round=number, reason="no picked user has a labelled image"))
        config = self.started.config
        newest = self.newest_model(number)
        base = started.base_model or newest
        before = self.rounds.get(number - 1)
        return PlanRound(
            started=started,
            base_model=base,
            users=users,
            quorum=quorum_of(started.quorum or config.quorum.fraction, len(users)),
            learning_rate=learning_rate_of(config, number),
            deadline_s=started.deadline_s or config.quorum.deadline_s,
            # Momenta belong to the model that they led to: a round from another one starts without.
            server_state=before.published.server_state if before and before.published and base == newest else None,
            largest_value=value_bound(len(users), max(self._labelled_images(user) for user in users)),
        )

    def newest_model(self, number: int) -> Ref:
        """The model that round ``number`` starts from: the one of the round before, or the run's base model."""
        before = self.rounds.get(number - 1)
        return before.published.model if before and before.published else self.started.base_model

    def picked(self, number: int, fraction: float | None = None) -> tuple[str, ...]:
        """The users of a round, drawn from the run's seed, in the order of the dataset."""
        share = fraction or self.started.config.fraction
        count = max(1, math.ceil(share * len(self.users) - 1e-9))
        if count == len(self.users):
            return self.users
        generator = np.random.Generator(np.random.PCG64(_key(self.started.config.seed, "users", number)))
        chosen = generator.permutation(len(self.users))[:count]
        return tuple(self.users[index] for index in sorted(chosen))

    def _usable(self, user: str) -> bool:
        # A plan that somebody else made may count users that have no labels.
        return user in self.labelled and any(label is not None for label in self.labelled[user].labels)

    def _labelled_images(self, user: str) -> int:
        """What the user's update weighs."""
        return sum(label is not None for label in self.labelled[user].labels)

    def _task(self, user: str, planned: RoundPlanned) -> TaskAssigned:
        labelled = self.labelled[user]
        return TaskAssigned(
            run=self.run,
            round=planned.round,
            user=user,
            shard=labelled.shard,
            labels=labelled.labels,
            spec=planned.spec,
            seed=_key(self.started.config.seed, user, planned.round),
        )

    def _finish(self, last: int) -> Intent | None:
        """The end of a run that has all its models: once the last is evaluated, or nobody will evaluate it."""
        facts = self.rounds[last]
        if facts.evaluated:
            return Say(self._ended("completed", "", last))
        if facts.unevaluated is not None:
            reason = f"the model of round {last} has no evaluation: {facts.unevaluated.reason}"
            return Say(self._ended("completed", reason[:500], last))
        return None

    def _ended(self, status: str, reason: str, last: int) -> RunFinished:
        return RunFinished.model_validate(
            {
                "run": self.run,
                "status": status,
                "reason": reason,
                "rounds": last,
                "final_model": self.newest_model(last + 1),
            }
        )


def over(run: str, finished: RunFinished) -> str:
    """Says that a run has ended, and why if that is known."""
    return f"run {run} is {finished.status}" + (f": {finished.reason}" if finished.reason else "")


def unknown(run: str) -> str:
    """Says that there is no such run."""
    return f"there is no run {run!r} on this bus"


def task_spec(started: RunStarted, plan: PlanRound) -> TaskSpec:
    """What all tasks of the planned round share."""
    training = started.config.training
    return TaskSpec(
        run=started.run,
        round=plan.started.round,
        artifacts=started.artifacts,
        base_model=plan.base_model,
        kind=started.config.kind,
        learning_rate=plan.learning_rate,
        epochs=training.epochs,
        augmentations=training.augmentations,
        augmentation=training.augmentation,
        encoding=training.encoding,
    )


def quorum_of(fraction: float, users: int) -> int:
    """Accepted updates that close a round of ``users``: the fraction of them, rounded up, at least one."""
    return max(1, math.ceil(fraction * users - 1e-9))


def learning_rate_of(config: RunConfig, number: int) -> float:
    """The learning rate of round ``number`` (1, 2, …): decayed once per round after the first."""
    return float(config.training.learning_rate * config.training.learning_rate_decay ** (number - 1))


def _key(seed: int, what: str, number: int) -> int:
    """32 bits that depend on all of seed, name and round."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{number}/{what}".encode()).digest()[:4], "big")
