"""The words of federated learning: all that is said of it on the bus, each declared once (``bus.words.payload``)."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AwareDatetime, Field

from agents.words.engine_kinds import EngineKind, kind_of
from agents.words.run_config import ManifestFiles, RunConfig, RunDataset, TaskSpec
from bus.words.payload import EVERY_ROLE, GATEWAY, OPERATOR, Live, Payload, Token, Upgrades, new_role, roles
from bus.words.references import BULK, Document
from bus.words.values import MAX_IMAGES_PER_USER, MAX_USERS, Frozen, Name, Ref, RoundNumber, Sha256, ShortText

LABELLER, DISPATCHER, AGGREGATOR, EVALUATOR = map(new_role, ("labeller", "dispatcher", "aggregator", "evaluator"))
LARGEST_LOSS = 1e4
"""What the evaluator says of a model that diverged, nats."""
MAX_OPEN_RUNS = 400
"""Open runs that one event can name."""
RoundToken = Annotated[RoundNumber, Token("number of the round; 0 is the base model alone")]
UserToken = Annotated[Name, Token("name of the user")]


class RoundPayload(Payload):
    """A payload about one round."""

    round: RoundToken


class UserPayload(RoundPayload):
    """A payload about one user's task in one round."""

    user: UserToken


class RunStarted(Payload):
    """A run exists: what it trains, on which data, and how."""

    TYPE = "run.started"
    SAID_BY = (OPERATOR,)
    config: RunConfig
    config_digest: Sha256
    dataset: Annotated[Ref, Document(RunDataset)] = Field(
        description="JSON object: classes, each user's shard, the held-out shard"
    )
    artifacts: Annotated[Ref, Document(ManifestFiles)] = Field(
        description="JSON object: the manifest of the training artifacts"
    )
    base_model: Ref = Field(description="raw little-endian float32: trainable parameters in manifest order")
    users: int = Field(ge=1, le=MAX_USERS)


class DroppedImage(Frozen):
    """An image that the labeller could not give a class, and why."""

    index: int = Field(ge=0, lt=MAX_IMAGES_PER_USER)
    reason: Literal["unknown", "not_a_class", "ambiguous", "refused", "failed"]
    answer: ShortText = ""


class ImagesLabelled(Payload):
    """One user's images have labels: a class index for each image, or none where the image was dropped."""

    TYPE = "images.labelled"
    SAID_BY = (LABELLER,)
    user: UserToken
    shard: Annotated[Ref, BULK]
    labels: Annotated[tuple[int | None, ...], Field(max_length=MAX_IMAGES_PER_USER)]
    dropped: tuple[DroppedImage, ...] = ()
    provider: str = Field(max_length=64)
    model: str | None = Field(default=None, max_length=128)
    prompt_version: str | None = Field(default=None, max_length=64)
    prompt_tokens: int = Field(default=0, ge=0)
    completion_tokens: int = Field(default=0, ge=0)


class RoundStarted(RoundPayload):
    """Somebody asks for a round; what is left out follows from the run's config and its newest model."""

    TYPE = "round.started"
    SAID_BY = (OPERATOR, DISPATCHER)
    base_model: Ref | None = None
    fraction: float | None = Field(default=None, gt=0, le=1)
    quorum: Annotated[float, Field(gt=0, le=1)] | None = Field(default=None, description="fraction of the users")
    deadline_s: float | None = Field(default=None, gt=0, le=86_400)


class RoundPlanned(RoundPayload):
    """The dispatcher settled the round: how many tasks, from which model, until when."""

    TYPE = "round.planned"
    SAID_BY = (DISPATCHER,)
    base_model: Ref
    spec: Annotated[Ref, Document(TaskSpec)] = Field(
        description="JSON object: the TaskSpec that every task of the round shares"
    )
    users: int = Field(ge=1, le=MAX_USERS, description="tasks of this round")
    quorum: int = Field(ge=1, le=MAX_USERS, description="accepted updates that close the round")
    learning_rate: float = Field(gt=0)
    deadline: AwareDatetime
    deadline_s: float = Field(gt=0)
    server_state: Ref | None = Field(default=None, description="what the strategy kept from the round before, if any")
    largest_value: Annotated[float, Field(gt=0)] | None = Field(
        default=None,
        description="largest magnitude of a value of an update: so far, all of them together stay within the sum",
        exclude_if=lambda value: value is None,
    )


class TaskAssigned(UserPayload):
    """One user's work in one round: which images, their labels, and the spec that says what to do with them."""

    TYPE = "task.assigned"
    SAID_BY = (DISPATCHER,)
    shard: Annotated[Ref, BULK]
    labels: Annotated[tuple[int | None, ...], Field(max_length=MAX_IMAGES_PER_USER)]
    spec: Annotated[Ref, Document(TaskSpec)]
    seed: int = Field(ge=0, lt=2**32, description="key of the task's augmentation draws")


Platform = Literal["browser", "native"]


class UpdateMetrics(Frozen):
    """What a client says about the task it did."""

    predictions: Annotated[tuple[int, ...], Field(max_length=MAX_IMAGES_PER_USER)] = Field(
        description="predicted class of every image of the shard, dropped images included"
    )
    examples: int = Field(ge=0, description="labelled images of the user: its weight in the mean")
    mismatched_images: int = Field(ge=0, description="images whose prediction differs from their label")
    trained_images: int = Field(ge=0, description="images that training saw, augmentations and epochs included")
    loss_first: float | None = Field(default=None, description="mean cross-entropy of the first step, nats")
    loss_last: float | None = Field(default=None, description="mean cross-entropy of the last step, nats")
    predict_s: float = Field(default=0.0, ge=0)
    train_s: float = Field(default=0.0, ge=0)
    platform: Platform | None = Field(
        default=None, description="where the client runs", exclude_if=lambda platform: platform is None
    )


class UpdateSubmitted(UserPayload):
    """A client finished a task and its update lies in the object store: the completion event of the quorum."""

    TYPE = "update.submitted"
    SAID_BY = (GATEWAY,)
    base_model: Sha256
    update: Ref
    encoding: str = Field(max_length=32)
    metrics: UpdateMetrics
    client: Name
    engine: str = Field(max_length=64)
    norm: float | None = Field(
        default=None,
        ge=0,
        description="L2 norm of the update, as the gateway found it",
        exclude_if=lambda norm: norm is None,
    )

    @property
    def client_kind(self) -> EngineKind:
        """What kind of client it was; those of older recordings had it in the name of their engine alone."""
        return self.metrics.platform or kind_of(self.engine)


RejectionCode = Literal[
    "stale",
    "digest",
    "size",
    "shape",
    "nonfinite",
    "magnitude",
    "norm",
    "duplicate",
    "unknown_task",
    "metrics",
    "refused",
]
NO_FAULT: frozenset[RejectionCode] = frozenset({"stale", "duplicate"})
"""Somebody else was faster, or the round ended meanwhile: nothing went wrong, and nobody has to do anything."""


class UpdateRejected(UserPayload):
    """An update was not counted, and why."""

    TYPE = "update.rejected"
    SAID_BY = (AGGREGATOR, GATEWAY)
    attempt: Annotated[Name, Token("name of the refused attempt")]
    code: RejectionCode
    reason: ShortText
    client: Name


class RoundExtended(RoundPayload):
    """The deadline passed without a quorum and the round got more time."""

    TYPE = "round.extended"
    SAID_BY = (AGGREGATOR,)
    extension: Annotated[int, Token("1 for the round's first extension")] = Field(ge=1, le=1_000)
    deadline: AwareDatetime


class RoundClosed(RoundPayload):
    """No more updates count: the accepted ones are the first of each user with a sequence up to ``through``."""

    TYPE = "round.closed"
    SAID_BY = (AGGREGATOR,)
    reason: Literal["quorum", "all", "deadline"]
    accepted: int = Field(ge=0, le=MAX_USERS)
    missing: int = Field(ge=0, le=MAX_USERS)
    rejected: int = Field(ge=0, le=MAX_USERS)
    through: int = Field(ge=1, description="stream sequence of the last event that counted")


class RoundFailed(RoundPayload):
    """The round ended without a model."""

    TYPE = "round.failed"
    SAID_BY = (DISPATCHER, AGGREGATOR)
    reason: ShortText
    code: Literal["strategy_failed", "strategy_result", "object_missing", "object_corrupt"] | None = Field(
        default=None,
        description="the strategy is at fault, or what the model is made from is lost; only such a failure counts "
        "after the round was closed",
        exclude_if=lambda code: code is None,
    )


class ModelPublished(RoundPayload):
    """The aggregate of a round: the new global model."""

    TYPE = "model.published"
    SAID_BY = (AGGREGATOR,)
    model: Ref
    parent: Ref
    inputs_digest: Sha256 = Field(description="digest of the sorted list of (user, update digest, weight)")
    strategy: str = Field(max_length=128)
    updates: int = Field(ge=0, le=MAX_USERS)
    examples: int = Field(ge=0)
    server_state: Ref | None = Field(
        default=None,
        description="raw little-endian float32: the strategy's vectors, one after the other, if it has any",
    )
    clip_norm: float | None = Field(
        default=None,
        gt=0,
        description="the L2 norm that larger updates were scaled down to, where the round has one",
        exclude_if=lambda norm: norm is None,
    )


class Score(Frozen):
    """How well a model does on the held-out images."""

    accuracy: float = Field(ge=0, le=1)
    loss: float = Field(ge=0, description="mean cross-entropy, nats")


def _finite_losses(data: dict[str, Any]) -> dict[str, Any]:
    """Format 1 to 2: a loss that is infinite or not a number was written as null, and is the largest loss since."""
    scores = {
        name: score | {"loss": LARGEST_LOSS}
        for name in ("base", "updated")
        if isinstance(score := data.get(name), dict) and score.get("loss", 0.0) is None
    }
    return data | scores


class ModelEvaluated(RoundPayload):
    """Base and updated model compared on the held-out images; round 0 is the base model alone."""

    TYPE = "model.evaluated"
    SAID_BY = (EVALUATOR,)
    UPGRADES: ClassVar[Upgrades] = {1: _finite_losses}
    model: Sha256
    images: int = Field(ge=1)
    base: Score
    updated: Score
    details: Ref = Field(description="JSON object: per-class accuracy and confusion matrix of both")


class EvaluationFailed(RoundPayload):
    """The evaluator gave a model up: it will have no score, unless somebody has it tried again."""

    TYPE = "evaluation.failed"
    SAID_BY = (EVALUATOR,)
    model: Sha256
    reason: ShortText


class RunFinished(Payload):
    """The run ended; nothing about it changes any more."""

    TYPE = "run.finished"
    SAID_BY = (OPERATOR, LABELLER, DISPATCHER)
    status: Literal["completed", "failed", "cancelled"]
    reason: ShortText = ""
    rounds: int = Field(ge=0)
    final_model: Ref | None = None


class OpenRun(Frozen):
    """A run that is not finished, and where it began."""

    run: Name
    sequence: int = Field(ge=1, description="stream sequence of its run.started")


class RunsSettled(Payload):
    """Said now and then when a run has ended: of all runs of the stream, those that are not finished.

    It is true for ever: every run that began at or before ``sequence`` and is not named here is finished.
    """

    TYPE = "runs.settled"
    SAID_BY = (DISPATCHER,)
    sequence: int = Field(ge=1, description="stream sequence of the run's run.finished")
    open: Annotated[tuple[OpenRun, ...], Field(max_length=MAX_OPEN_RUNS)] = ()


class Progress(Live):
    """Live progress of one task: core NATS, not kept."""

    TYPE = "progress"
    SAID_BY = (GATEWAY,)
    run: Annotated[Name, Token("name of the run")]
    round: RoundToken
    user: UserToken
    client: Name
    phase: Literal["predict", "train", "upload"]
    images_seen: int = Field(ge=0)
    mismatched_images: int = Field(default=0, ge=0)
    trained_images: int = Field(default=0, ge=0)
    loss: float | None = None


class Heartbeat(Live):
    """An agent is alive: core NATS, not kept."""

    TYPE = "hb"
    SAID_BY = EVERY_ROLE
    role: Annotated[Name, Token("role of the agent", is_speaker=True)]
    id: Annotated[Name, Token("process of the agent")]
    time: AwareDatetime
    uptime_s: float = Field(ge=0)
    state: dict[str, int | float | str] = Field(default_factory=dict)


ROLES = roles()
