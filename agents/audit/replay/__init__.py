"""Replays a recorded run through every agent's pure core: the same events must give the same decisions and bits.

Needs no broker, browser or labeller: a recording holds the events of a run and the objects that they name.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

from pydantic import ValidationError

from agents.audit.ledger import LOST
from agents.audit.replay.aggregator import AggregatorReplay
from agents.audit.replay.dispatcher import DispatcherReplay
from agents.audit.replay.evaluator import EvaluatorReplay, HeldOut
from agents.audit.replay.gateway import GatewayReplay
from agents.audit.replay.labeller import LabellerReplay
from agents.audit.replay.outcome import ROLES, Difference, Objects, Replay, Role, find_object
from agents.core.strategies.registry import strategy_named
from agents.words.events import ModelPublished, RoundFailed, RunStarted
from agents.words.run_config import RunDataset
from bus.errors import MalformedRecordingError, ObjectMissingError
from bus.words.envelope import Stored
from bus.words.problems import what_is_wrong

__all__ = ["ROLES", "Difference", "HeldOut", "Replay", "Role", "find_object", "replay_run"]


class _RoleReplay(Protocol):
    def take(self, stored: Stored, outcome: Replay) -> None: ...


def _needs_strategy(stored: Stored) -> bool:
    data = stored.event.data
    failed = isinstance(data, RoundFailed) and data.code is not None and data.code not in LOST
    return failed or isinstance(data, ModelPublished)


def replay_run(
    events: Sequence[Stored],
    objects: Objects,
    *,
    roles: Collection[Role] = ROLES,
    held_out: HeldOut | None = None,
) -> Replay:
    """Runs the recorded events through the rules of the labeller, dispatcher, gateway, aggregator and evaluator.

    Args:
        events: of one run, in stream order.
        objects: bytes by SHA-256: at least the dataset, and the base models and updates of every round.
        roles: whose events to replay.
        held_out: how to run models again, for the evaluator; without it its scores are checked against its details.

    Raises:
        ObjectMissingError: the recording lacks the run's start or its dataset.
        MalformedRecordingError: the dataset is none.
        UnknownStrategyError, StrategySettingsError: the strategy that made its models is not here.
    """
    started = next((one.event.data for one in events if isinstance(one.event.data, RunStarted)), None)
    if not isinstance(started, RunStarted):
        raise ObjectMissingError("the recording has no run.started event")
    if {"dispatcher", "aggregator"} & set(roles) and any(_needs_strategy(one) for one in events):
        strategy_named(started.config.strategy, started.config.strategy_settings)
    try:
        dataset = RunDataset.model_validate_json(find_object(objects, started.dataset))
    except ValidationError as error:
        raise MalformedRecordingError(
            f"the run's dataset is none: {what_is_wrong(error)}", hint="record the run again"
        ) from None
    replays: dict[Role, _RoleReplay] = {
        "labeller": LabellerReplay(started, dataset, objects),
        "dispatcher": DispatcherReplay(started, objects),
        "gateway": GatewayReplay(started, dataset, objects),
        "aggregator": AggregatorReplay(started, objects),
        "evaluator": EvaluatorReplay(started, dataset, objects, held_out),
    }
    outcome = Replay(started.run)
    for stored in events:
        for role in ROLES:
            if role in roles:
                replays[role].take(stored, outcome)
    return outcome
