"""Reads a run from a live bus, stream and objects, and checks its ledger."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from pydantic import ValidationError

from agents.audit.ledger import Problem, check_decisions, check_events, check_model, check_sequence, rounds_of
from agents.core.learning.encodings import decode_update
from agents.core.learning.fixed_point import FixedPointSum
from agents.core.rounds.state import RoundState
from agents.words.events import RunStarted
from agents.words.run_config import TaskSpec
from bus.client import Bus
from bus.errors import FedbusError
from bus.words.envelope import Stored
from bus.words.subjects import EVENTS


@dataclass
class Verdict:
    """What was looked at and what is wrong."""

    events: int = 0
    updates: int = 0
    models: int = 0
    images: int = 0
    problems: list[Problem] = field(default_factory=list)


async def verify_run(bus: Bus, run: str) -> Verdict:
    """Checks the whole stream for gaps and the run for everything that ``agents.audit.ledger`` names."""
    return (await verify_runs(bus, [run]))[run]


async def verify_runs(bus: Bus, runs: Sequence[str]) -> dict[str, Verdict]:
    """As ``verify_run`` for each of several runs; the stream is read once."""
    # What comes later is not looked at; and what somebody put on the DLQ must not say how long the stream is.
    last = await bus.last_sequence()
    async with bus.follow(EVENTS, live=False) as items:
        stream = [item async for item in items if isinstance(item, Stored)]
    dead = await bus.dead_letters()
    gaps = check_sequence([one.sequence for one in stream] + [one.sequence for one in dead], 1, last)
    by_run: dict[str, list[Stored]] = {run: [] for run in runs}
    for one in stream:
        if (events := by_run.get(one.event.data.run)) is not None:
            events.append(one)
    del stream
    return {run: await _verdict(bus, events, gaps) for run, events in by_run.items()}


async def _verdict(bus: Bus, events: Sequence[Stored], gaps: Sequence[Problem]) -> Verdict:
    verdict = Verdict(events=len(events), problems=list(gaps))
    verdict.problems += check_events(events)
    started = next((one.event.data for one in events if isinstance(one.event.data, RunStarted)), None)
    if isinstance(started, RunStarted):
        await _check_objects(bus, verdict, started, events)
    return verdict


async def _check_objects(bus: Bus, verdict: Verdict, started: RunStarted, events: Sequence[Stored]) -> None:
    rounds = rounds_of(started, events)
    specs: dict[int, TaskSpec] = {}
    for number, state in rounds.items():
        if state.plan is None:
            continue
        try:
            specs[number] = TaskSpec.model_validate_json(await bus.objects.get(state.plan.spec))
            parent = np.frombuffer(await bus.objects.get(state.plan.base_model), "<f4")
        except (FedbusError, ValidationError) as error:
            verdict.problems.append(Problem("object", f"round {number}: spec or base model: {error}"))
            continue
        total = await _sum(bus, verdict, state, parent.size, started.config.clip_norm)
        if state.published is not None:
            verdict.models += 1
            verdict.problems += check_model(state, total, parent)
            try:
                await bus.objects.get(state.published.model)
            except FedbusError as error:
                verdict.problems.append(Problem("object", f"round {number}: the model: {error.message}"))
    verdict.problems += check_decisions(events, specs, rounds)


async def _sum(
    bus: Bus, verdict: Verdict, state: RoundState, parameters: int, clip_norm: float | None
) -> FixedPointSum:
    """The accepted updates of a round, read one after the other: memory does not grow with their number."""
    total = FixedPointSum(parameters)
    for user, candidate in state.accepted().items():
        update = candidate.update
        verdict.updates += 1
        verdict.images += len(update.metrics.predictions)
        try:
            data = await bus.objects.get(update.update)
            total.add(decode_update(data, update.encoding, parameters, clip_norm=clip_norm), candidate.weight)
        except FedbusError as error:
            text = f"round {state.round}: the update of {user}: {error.message}"
            verdict.problems.append(Problem("object", text, candidate.sequence))
    return total
