"""What a run is told to do: its config, and the task spec that every task of a round shares."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, Field

from bus.words.references import BULK, Document
from bus.words.values import Frozen, Name, Ref, RoundNumber

DEFAULT_KIND = "image-classification"
"""The kind of task of a run that names none."""
KindOfTask = Annotated[
    Name, Field(description="one of agents/core/learning/kinds", exclude_if=lambda kind: kind == DEFAULT_KIND)
]
"""Not written where it is the default: configs and specs are then, byte by byte, those of before there were kinds."""


class LabellingSpec(Frozen):
    """How images get their labels."""

    provider: Literal["openai", "truth", "recorded"] = "truth"
    model: str = Field(default="gpt-4o", max_length=128)
    error_rate: float = Field(default=0.05, ge=0, le=1, description="truth only: share of labels replaced at random")
    images_per_request: int = Field(default=5, ge=1, le=50)
    concurrency: int = Field(default=4, ge=1, le=64)
    detail: Literal["low", "high"] = "low"


class AugmentationSpec(Frozen):
    """Ranges of the random changes that make the augmented copies of an image.

    All values are integers, so that every engine computes the same pixels. ``sin`` and ``cos`` hold the rotations to
    choose from and ``inverse_scale`` the zooms, each as a fixed-point number with 16 fractional bits.
    """

    flip: bool = True
    shift: int = Field(default=2, ge=0, le=1024, description="largest shift in either direction, pixels")
    cos: tuple[int, ...] = Field(min_length=1, max_length=361)
    sin: tuple[int, ...] = Field(min_length=1, max_length=361)
    inverse_scale: tuple[int, ...] = Field(min_length=1, max_length=361)
    brightness: int = Field(default=20, ge=0, le=255, description="largest change of a pixel's value")
    contrast: int = Field(default=38, ge=0, le=255, description="largest change of the gain, in 1/256")


class TrainingSpec(Frozen):
    """What a client does with a mismatched image."""

    epochs: int = Field(default=1, ge=1, le=100)
    augmentations: int = Field(default=6, ge=0, le=63, description="copies beside the original")
    learning_rate: float = Field(default=0.03, gt=0, le=100)
    learning_rate_decay: float = Field(default=0.75, gt=0, le=1, description="factor per round")
    augmentation: AugmentationSpec
    encoding: str = Field(default="float32", max_length=32)


class QuorumSpec(Frozen):
    """When a round closes."""

    fraction: float = Field(default=1.0, gt=0, le=1, description="share of the round's users; rounded up")
    grace_s: float = Field(default=0.0, ge=0, le=3_600, description="time for stragglers after the quorum")
    deadline_s: float = Field(default=300.0, gt=0, le=86_400)
    extensions: int = Field(default=2, ge=0, le=100, description="times that a round without quorum gets more time")


class RunConfig(Frozen):
    """One experiment, complete: with the same config, data and artifacts a run gives the same model."""

    seed: int = Field(default=0, ge=0, lt=2**32)
    rounds: int = Field(default=10, ge=1, le=10_000)
    users: int = Field(default=100, ge=1, le=100_000)
    images_per_user: int = Field(default=20, ge=1, le=1_000)
    fraction: float = Field(default=1.0, gt=0, le=1, description="share of the users that a round picks")
    quorum: QuorumSpec = QuorumSpec()
    labelling: LabellingSpec = LabellingSpec()
    training: TrainingSpec
    kind: KindOfTask = DEFAULT_KIND
    strategy: str = Field(
        default="fedavg", max_length=128, description="how updates become a model: a name, or module:Class"
    )
    strategy_settings: dict[str, bool | int | float | str] = Field(
        default_factory=dict,
        max_length=64,
        exclude_if=lambda value: not value,
        description="what this strategy is told, by setting; left out: its defaults",
    )
    max_update_norm: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="largest L2 norm of an update; none: any finite update"
    )
    over_norm: Literal["refuse", "clip"] = Field(
        default="refuse", description="what becomes of an update past that norm; clip: it counts, scaled down to it"
    )
    clip_to_median: Annotated[float, Field(gt=0)] | None = Field(
        default=None,
        description="an update past this many times the round's median L2 norm counts scaled down to it",
        exclude_if=lambda value: value is None,
    )

    @property
    def clip_norm(self) -> float | None:
        """The L2 norm that updates of every round are scaled down to, if any."""
        return self.max_update_norm if self.over_norm == "clip" else None


def _ref_of_file(file: object) -> object:
    """The reference to a file of the manifest, which says where it lies in a folder beside that."""
    if not isinstance(file, dict):
        return file
    known = {key: file[key] for key in ("size", "sha256", "media_type") if key in file}
    return {"name": f"sha256-{file.get('sha256')}", **known}


class ManifestFiles(BaseModel):
    """The files that a manifest of training artifacts names, whatever else it says; a model may lack some."""

    files: Annotated[dict[str, Annotated[Ref, BeforeValidator(_ref_of_file)] | None], BULK] = {}


class TaskSpec(Frozen):
    """What all tasks of one round share; an object, so that a client fetches it once a round."""

    run: Name
    round: RoundNumber
    artifacts: Annotated[Ref, Document(ManifestFiles)] = Field(
        description="JSON object: the manifest of the training artifacts"
    )
    base_model: Ref = Field(description="raw little-endian float32: trainable parameters to start from")
    kind: KindOfTask = DEFAULT_KIND
    optimizer: Ref | None = Field(
        default=None,
        description="of old runs only: ONNX with this round's learning rate",
        exclude_if=lambda ref: ref is None,
    )
    learning_rate: float = Field(gt=0)
    epochs: int = Field(ge=1, le=100)
    augmentations: int = Field(ge=0, le=63)
    augmentation: AugmentationSpec
    encoding: str = Field(max_length=32)


class UserShard(Frozen):
    """One user's images: a safetensors object with the uint8 tensor ``images``, [n, height, width, channels]."""

    user: Name
    shard: Annotated[Ref, BULK]


class RunDataset(Frozen):
    """The data of a run, as one JSON object."""

    classes: tuple[str, ...] = Field(min_length=2, max_length=10_000)
    users: tuple[UserShard, ...] = Field(min_length=1, max_length=100_000)
    held_out: Annotated[Ref, BULK] = Field(
        description="safetensors: uint8 images [n, height, width, channels], int64 labels [n]"
    )
    truth: Ref | None = Field(default=None, description="JSON object: user to true class indices, for simulation only")
