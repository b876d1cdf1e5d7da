"""Runs as events and live progress, and what the view of a run is after some of them: Python and the page must agree.

A case is a list of entries, ``{"sequence", "time", "event"}`` (of the event as much as a view reads) or
``{"progress"}``, and the view as JSON after the first ``after`` of them, for several numbers of entries.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from datetime import UTC
from typing import Any

from agents.core.rounds.state import attempt_of
from agents.core.views.as_json import run_json
from agents.core.views.run import RunView
from agents.words.engine_kinds import kind_of
from agents.words.events import (
    DroppedImage,
    ModelEvaluated,
    ModelPublished,
    Payload,
    Progress,
    RejectionCode,
    RoundClosed,
    RoundExtended,
    RoundFailed,
    RoundStarted,
    RunFinished,
    Score,
    UpdateRejected,
    UpdateSubmitted,
)
from bus.recording.files import load_recording
from bus.words.envelope import Stored
from tests.builders import ANY_REF, BASE_REF, RUN, Stream, assigned, config, labelled, planned, run_started, submitted
from tests.conftest import SMALL_RUN

OTHER_REF = ANY_REF.model_copy(update={"sha256": "b" * 64, "name": "sha256-" + "b" * 64})
WEB, NATIVE = "onnxruntime-web 1.19.2 wasm, 1 thread", "onnxruntime-training native"


@dataclass
class Case:
    """One run in the making; every method adds an entry."""

    view: RunView
    stream: Stream = field(default_factory=Stream)
    entries: list[dict[str, Any]] = field(default_factory=list)
    views: list[dict[str, Any]] = field(default_factory=list)

    def add(self, data: Payload) -> Stored:
        """The next event, a quarter of a second after the one before."""
        return self.put(self.stream.add(data, after_s=0.25))

    def put(self, stored: Stored) -> Stored:
        """An event at its place, maybe once more."""
        self.view.fold(stored)
        event = json.loads(stored.event.to_json())
        self.entries.append(
            {
                "sequence": stored.sequence,
                "time": stored.time.astimezone(UTC).isoformat().replace("+00:00", "Z"),
                "event": {"type": event["type"], "data": event["data"]},
            }
        )
        return stored

    def note(self, user: str, client: str = "tab-1", *, round: int = 1, **changes: Any) -> None:
        """Live progress."""
        said = Progress(run=RUN, round=round, user=user, client=client, phase="train", images_seen=3)
        said = said.model_copy(update=changes)
        self.view.note(said)
        self.entries.append({"progress": said.model_dump(mode="json")})

    def look(self) -> None:
        """Writes down what the view is now."""
        self.views.append({"after": len(self.entries), "view": run_json(self.view)})

    def json(self, name: str) -> dict[str, Any]:
        """The case as it lies in the file."""
        self.look()
        return {"name": name, "run": self.view.run, "entries": self.entries, "views": self.views}


def update(user: str, client: str = "tab-1", engine: str = WEB, *, round: int = 1, **changes: Any) -> UpdateSubmitted:
    """A user's update by this client."""
    said = submitted(user, round=round)
    metrics = said.metrics.model_copy(update={"predict_s": 0.125, "train_s": 0.7})
    return said.model_copy(update={"client": client, "engine": engine, "metrics": metrics} | changes)


def rejection(user: str, attempt: str, code: RejectionCode, *, round: int = 1, reason: str = "why") -> UpdateRejected:
    """Somebody's word that an update or upload does not count."""
    return UpdateRejected(run=RUN, round=round, user=user, attempt=attempt, code=code, reason=reason, client="tab-1")


def closed(through: int, *, round: int = 1, accepted: int = 2, missing: int = 0) -> RoundClosed:
    """The end of a round."""
    return RoundClosed(
        run=RUN, round=round, reason="quorum", accepted=accepted, missing=missing, rejected=0, through=through
    )


def published(round: int = 1) -> ModelPublished:
    """A round's model."""
    return ModelPublished(
        run=RUN, round=round, model=OTHER_REF, parent=BASE_REF, inputs_digest=ANY_REF.sha256, strategy="fedavg",
        updates=2, examples=4,
    )  # fmt: skip


def evaluated(round: int, accuracy: float) -> ModelEvaluated:
    """A round's scores."""
    return ModelEvaluated(
        run=RUN, round=round, model=ANY_REF.sha256, images=10, base=Score(accuracy=0.5, loss=1.5),
        updated=Score(accuracy=accuracy, loss=1.25), details=ANY_REF,
    )  # fmt: skip


def extended(extension: int, *, round: int = 1) -> RoundExtended:
    """More time for a round."""
    plan = planned(1, 1, deadline_s=60.0 * (extension + 1))
    return RoundExtended(run=RUN, round=round, extension=extension, deadline=plan.deadline)


def begun(*, users: int = 3, rounds: int = 2, plan: bool = True) -> Case:
    """A run whose users have labels, with the tasks of its first round."""
    case = Case(RunView(RUN))
    case.add(run_started(config(rounds=rounds, users=users)))
    for index in range(users):
        case.add(labelled(f"u{index}"))
    if plan:
        plan_round(case, 1, users)
    return case


def plan_round(case: Case, number: int, users: int) -> None:
    """A round up to its tasks."""
    case.add(RoundStarted(run=RUN, round=number))
    case.add(planned(users, 2, round=number))
    for index in range(users):
        case.add(assigned(f"u{index}", round=number))


def whole_run() -> dict[str, Any]:
    """From nothing to the end: labels with gaps, a late update, and a client that joins in the second round."""
    case = Case(RunView(RUN))
    case.look()
    case.add(run_started(config(rounds=2, users=3)))
    case.look()
    gap = {"labels": (1, None), "dropped": (DroppedImage(index=1, reason="unknown", answer="?"),), "prompt_tokens": 9}
    case.add(labelled("u0").model_copy(update=gap))
    case.add(RoundStarted(run=RUN, round=1))
    case.add(labelled("u1"))
    case.look()
    case.add(labelled("u2"))
    case.add(evaluated(0, 0.5))
    case.add(planned(3, 2))
    for user in ("u0", "u1", "u2"):
        case.add(assigned(user))
    case.note("u0", images_seen=2, phase="predict")
    case.note("u1", "cli", loss=0.75, mismatched_images=2)
    case.look()
    case.add(update("u0"))
    case.note("u0")
    last = case.add(update("u1", "cli", NATIVE))
    case.note("u2")
    case.look()
    case.add(closed(last.sequence, missing=1))
    case.look()
    late = case.add(update("u2"))
    case.add(rejection("u2", attempt_of(late.sequence), "stale"))
    case.look()
    case.add(published())
    plan_round(case, 2, 3)
    case.note("u0", "newcomer", round=2)
    case.add(evaluated(1, 0.625))
    case.look()
    case.add(update("u0", "newcomer", "abacus 2", round=2))
    last = case.add(update("u2", "tab-1", round=2))
    case.add(closed(last.sequence, round=2, missing=1))
    case.add(published(2))
    case.add(evaluated(2, 0.75))
    case.look()
    case.add(RunFinished(run=RUN, status="completed", rounds=2, final_model=OTHER_REF))
    case.add(update("u1", round=2))
    case.note("u1", round=2)
    return case.json("a whole run")


def twice() -> dict[str, Any]:
    """Every event comes again, at once and much later."""
    case = begun()
    for stored in (update("u0"), update("u1")):
        case.put(case.add(stored))
    case.add(closed(case.view.sequence, missing=1))
    case.look()
    for stored in list(case.stream.events):
        case.put(stored)
    return case.json("every event twice")


def rejections() -> dict[str, Any]:
    """Refused by the gateway and tried again, by the aggregator, and for what nobody asked for."""
    case = begun(users=4)
    case.add(rejection("u0", "lease-1", "nonfinite", reason="a NaN"))
    case.look()
    case.note("u0", "cli")
    case.look()
    case.add(update("u0", "cli", NATIVE))
    first = case.add(update("u1"))
    case.add(rejection("u1", "lease-2", "duplicate"))
    case.look()
    case.add(rejection("u1", attempt_of(first.sequence), "norm", reason="too large"))
    case.look()
    case.add(update("u1"))
    other = case.add(update("u2", base_model=OTHER_REF.sha256))
    case.add(rejection("u2", attempt_of(other.sequence), "stale"))
    case.add(update("u9"))
    case.look()
    case.add(rejection("u0", "seq-1", "norm"))
    case.add(rejection("u0", "lease-4", "refused"))
    case.add(assigned("u4"))
    case.add(rejection("u4", "lease-5", "refused", reason="nobody can"))
    case.add(update("u4"))
    case.look()
    case.add(closed(case.view.sequence, accepted=1))
    case.add(rejection("u3", "lease-3", "stale", reason="the task was over"))
    return case.json("rejections")


def between() -> dict[str, Any]:
    """An update that comes after the decision to close and before the event that says so."""
    case = begun()
    case.add(update("u0"))
    last = case.add(update("u1"))
    case.add(update("u2"))
    case.look()
    case.add(closed(last.sequence, missing=1))
    return case.json("an update between decision and close")


def failed() -> dict[str, Any]:
    """Extensions, one of them out of turn, and a round that fails."""
    case = begun()
    case.add(extended(2))
    case.add(extended(1))
    case.note("u0")
    case.look()
    case.add(extended(2))
    case.add(update("u0"))
    case.add(RoundFailed(run=RUN, round=1, reason="1 of 3 updates was accepted, 2 are needed"))
    case.look()
    case.add(closed(case.view.sequence))
    case.add(extended(3))
    case.add(RunFinished(run=RUN, status="failed", reason="round 1: no quorum", rounds=0))
    return case.json("a failed round")


def broken(*, model_first: bool) -> dict[str, Any]:
    """A strategy fails after the round was closed; the model and the failure exclude each other, the first counts."""
    case = begun()
    case.add(update("u0"))
    case.add(closed(case.view.sequence, missing=1))
    case.add(RoundFailed(run=RUN, round=1, reason="too late"))
    case.look()
    failure = RoundFailed(run=RUN, round=1, reason="strategy own:Own raised in step", code="strategy_failed")
    for data in (published(), failure) if model_first else (failure, published()):
        case.add(data)
        case.look()
    return case.json(f"a strategy that fails {'after' if model_first else 'without'} a model")


def out_of_range() -> dict[str, Any]:
    """Other runs and rounds, and whoever joins in the middle: without its start a run is not there."""
    case = Case(RunView(RUN))
    case.add(RoundStarted(run=RUN, round=1))
    case.add(update("u0"))
    case.look()
    case.add(run_started(config(rounds=1, users=1)))
    for data in (
        labelled("u0").model_copy(update={"run": "other"}),
        RoundStarted(run=RUN, round=0),
        RoundStarted(run=RUN, round=2),
        run_started(config(rounds=5, users=5)),
        RunFinished(run="other", status="cancelled", rounds=0),
    ):
        case.add(data)
    case.note("u0")
    case.note("u0", round=7)
    case.look()
    plan_round(case, 1, 1)
    case.note("u1")
    case.note("u0", run="other")
    case.add(closed(1))
    case.add(published())
    case.add(update("u0"))
    return case.json("out of range")


def recorded() -> dict[str, Any]:
    """The run that was recorded once."""
    recording = load_recording(SMALL_RUN)
    case = Case(RunView(recording.run))
    for index, stored in enumerate(recording.events):
        case.put(stored)
        if index % 8 == 7:
            case.look()
    return case.json("the recorded run")


def storm(seed: int, entries: int) -> Case:
    """Whatever may be said, in any order."""
    choose, case = random.Random(seed), begun(plan=False)
    for index in range(entries):
        user, number = f"u{choose.randrange(4)}", choose.randrange(1, 3)
        client = f"client-{choose.randrange(3)}"
        place = choose.randrange(1, case.stream.events[-1].sequence + 1)
        match choose.randrange(14):
            case 0:
                case.add(planned(3, 2, round=number))
            case 1 | 2:
                case.add(assigned(user, round=number))
            case 3 | 4 | 5:
                base = choose.choice([BASE_REF, BASE_REF, BASE_REF, OTHER_REF]).sha256
                case.add(update(user, client, choose.choice([WEB, NATIVE]), round=number, base_model=base))
            case 6:
                known = case.view.rounds[number].tasks.get(user) if number in case.view.rounds else None
                at = known.sequence if known and known.sequence else place
                case.add(rejection(user, attempt_of(at), choose.choice(["norm", "stale"]), round=number))
            case 7:
                case.add(rejection(user, "lease-1", choose.choice(["digest", "stale", "refused"]), round=number))
            case 8 if index > entries // 3:
                case.add(closed(choose.choice([place, case.stream.events[-1].sequence]), round=number))
            case 9:
                case.add(extended(choose.randrange(1, 4), round=number))
            case 10 if index > entries // 2:
                case.add(choose.choice([published(number), RoundFailed(run=RUN, round=number, reason="no quorum")]))
            case 11:
                case.add(evaluated(choose.randrange(3), choose.random()))
            case 12:
                case.put(choose.choice(case.stream.events))
            case _:
                case.note(user, client, round=number, loss=choose.random())
        if index % 25 == 24:
            case.look()
    return case


def engine_cases() -> list[dict[str, str]]:
    """Names of engines, of today, of old recordings and unknown, with their kind."""
    names = (
        *(WEB, "onnxruntime-web 1.19.2 wasm, 2 threads", "onnxruntime-web", "onnxruntime-web/1.30 webgpu"),
        *(NATIVE, "onnxruntime-training/1.19.2, 1 thread", "synthetic native", "native", "torch/2.1 native"),
        *("any browser", "test", "", "nativelike 1", "constructor"),
    )
    return [{"engine": name, "kind": kind_of(name)} for name in names]


def view_cases() -> list[dict[str, Any]]:
    """All of them."""
    told = [whole_run(), twice(), rejections(), between(), failed(), out_of_range(), recorded()]
    told += [broken(model_first=False), broken(model_first=True)]
    return [*told, *(storm(seed, 100).json(f"a storm, {seed}") for seed in range(4))]
