"""Reads a run from a live bus, stream and objects, and checks its ledger."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from pydantic import ValidationError

from agents.audit.ledger import LOST, Problem, check_decisions, check_events, check_model, check_sequence, rounds_of
from agents.core.rounds.aggregation import RoundAggregation
from agents.runtime.model_files import local_parents, mapped_arrays
from agents.words.events import RoundPlanned, RunStarted
from agents.words.run_config import TaskSpec
from bus.client import Bus
from bus.errors import FedbusError
from bus.words.envelope import Stored
from bus.words.problems import what_is_wrong
from bus.words.subjects import EVENTS
from bus.words.values import Ref


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
    for number, one in rounds.items():
        if (plan := one.state.plan) is None:
            continue
        try:
            specs[number] = TaskSpec.model_validate_json(await bus.objects.get(plan.spec))
            await _add(bus, verdict, one)
            if one.state.published is not None:
                verdict.models += 1
                verdict.problems += check_model(one, *await _digests(bus, one, plan))
        except (FedbusError, ValidationError) as error:
            why = what_is_wrong(error) if isinstance(error, ValidationError) else str(error)
            verdict.problems.append(Problem("object", f"round {number}: its model cannot be made again: {why}"))
        one.release()
        if one.state.failed is not None and one.state.failed.code in LOST:
            for what, ref in (("base model", plan.base_model), ("server's state", plan.server_state)):
                await _check_object(bus, verdict, f"round {number}: the {what}", ref)
        if (published := one.state.published) is not None:
            for what, ref in (("model", published.model), ("server's state", published.server_state)):
                await _check_object(bus, verdict, f"round {number}: the {what}", ref)
    verdict.problems += check_decisions(events, specs, rounds)


async def _add(bus: Bus, verdict: Verdict, one: RoundAggregation) -> None:
    """Adds the accepted updates of a round, read one after the other: memory does not grow with their number."""
    for candidate in one.wanted():
        update = candidate.update
        verdict.updates += 1
        verdict.images += len(update.metrics.predictions)
        try:
            async with bus.objects.local(update.update) as data:
                await asyncio.to_thread(one.add, candidate, data)
        except FedbusError as error:
            text = f"round {one.state.round}: the update of {update.user}: {error.message}"
            verdict.problems.append(Problem("object", text, candidate.sequence))


async def _digests(bus: Bus, one: RoundAggregation, plan: RoundPlanned) -> tuple[str, str | None]:
    async with local_parents(bus.objects, plan) as (parent, before):
        with mapped_arrays() as new:
            return await asyncio.to_thread(one.digests, parent, before, new)


async def _check_object(bus: Bus, verdict: Verdict, what: str, ref: Ref | None) -> None:
    try:
        if ref is not None:
            await bus.objects.check(ref)
    except FedbusError as error:
        verdict.problems.append(Problem("object", f"{what}: {error.message}"))
