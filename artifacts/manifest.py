"""The manifest of an artifact folder: what is in it, what trains, and the digests that prove it."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from artifacts.errors import ArtifactIntegrityError, ManifestError
from bus.process.files import sha256_of
from bus.words.values import Ref
from data.class_names import ClassNames

MANIFEST_NAME = "manifest.json"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelFacts(_Frozen):
    """What the trained model is: pixel = (uint8/255 - mean) / std, images [channels, image_size, image_size].

    Where a model gives several classes one name, `classes` tells them apart by their ids.
    """

    architecture: str
    image_size: Annotated[int, Field(gt=0)]
    channels: Annotated[int, Field(gt=0)]
    classes: ClassNames
    mean: tuple[float, ...]
    std: tuple[Annotated[float, Field(gt=0)], ...]
    parameters_total: Annotated[int, Field(gt=0)]
    licence: str

    @model_validator(mode="after")
    def _channels_have_statistics(self) -> Self:
        if not len(self.mean) == len(self.std) == self.channels:
            raise ValueError("mean and std need one number per channel")
        return self


class OptimizerFacts(_Frozen):
    """How a step changes the parameters.

    A stateless optimizer keeps nothing between steps, so one session may serve user after user. The learning rate
    is the float32 initializer `learning_rate_initializer` of the optimizer model; `with_learning_rate` rewrites it.
    """

    kind: Literal["sgd", "adamw"]
    stateless: bool
    learning_rate: Annotated[float, Field(gt=0)]
    learning_rate_initializer: str
    weight_decay: Annotated[float, Field(ge=0)]
    clip_norm: Annotated[float, Field(gt=0)] | None


class TrainableTensor(_Frozen):
    """One trainable tensor; `offset` counts float32 elements in the contiguous buffer."""

    name: str
    shape: tuple[int, ...]
    offset: Annotated[int, Field(ge=0)]

    @property
    def count(self) -> int:
        """Number of elements."""
        product = 1
        for extent in self.shape:
            product *= extent
        return product


class ArtifactFile(_Frozen):
    """A file of the folder: its path relative to the manifest, size in bytes and SHA-256 in hex."""

    path: str
    size: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    media_type: Annotated[str, Field(max_length=100)]

    @model_validator(mode="after")
    def _path_stays_inside(self) -> Self:
        path = PurePosixPath(self.path)
        if path.is_absolute() or ".." in path.parts or not path.parts:
            raise ValueError(f"{self.path!r} leaves the artifact folder")
        return self

    @property
    def ref(self) -> Ref:
        """Where the file's bytes lie in the object store once they were put there."""
        return Ref(name=f"sha256-{self.sha256}", size=self.size, sha256=self.sha256, media_type=self.media_type)


class ArtifactFiles(_Frozen):
    """The files an engine needs; `trainable` is the initial trainable buffer as raw little-endian float32.

    Where a frozen part comes first, `prefix_model` (plain inference) and the three of the suffix do the same as
    training model, eval model and checkpoint, without running the frozen part again for an image seen before.
    """

    training_model: ArtifactFile
    eval_model: ArtifactFile
    checkpoint: ArtifactFile
    optimizer_model: ArtifactFile
    trainable: ArtifactFile
    prefix_model: ArtifactFile | None = None
    suffix_training_model: ArtifactFile | None = None
    suffix_eval_model: ArtifactFile | None = None
    suffix_checkpoint: ArtifactFile | None = None

    def items(self) -> list[tuple[str, ArtifactFile]]:
        """Return (role, file) pairs of the files that there are, in a fixed order."""
        files = ((role, getattr(self, role)) for role in type(self).model_fields)
        return [(role, file) for role, file in files if file is not None]

    def for_training(self) -> list[tuple[str, ArtifactFile]]:
        """Return those that an engine opens: where the model is split, the whole one need not travel too."""
        whole = {"training_model", "eval_model", "checkpoint"} if self.prefix_model is not None else set()
        return [(role, file) for role, file in self.items() if role not in whole | {"trainable"}]


class PrefixFacts(_Frozen):
    """The frozen part that comes first: one image's activations, float32 of `shape`, are all that training needs."""

    input: str
    output: str
    shape: Annotated[tuple[Annotated[int, Field(gt=0)], ...], Field(min_length=1, max_length=2)]


class MemoryFacts(_Frozen):
    """Estimates of what an engine holds, in bytes: batches are bounded by them, and full-size models announced.

    `parameters` counts all parameters, and gradient and both moments of the trained ones; the others are the results
    that a forward pass (at its widest) and a training step hold for one image.
    """

    parameters: Annotated[int, Field(gt=0)]
    forward_per_image: Annotated[int, Field(gt=0)]
    step_per_image: Annotated[int, Field(gt=0)]


class BuildFacts(_Frozen):
    """How the folder was made and how exactly it agrees with torch.

    `max_gradient_error` is the largest L2 norm of a tensor's difference over the norm of the whole gradient;
    `max_logit_error` is relative to the largest logit.
    """

    command: str
    seed: int
    versions: dict[str, str]
    max_gradient_error: float
    max_logit_error: float


class ArtifactManifest(_Frozen):
    """Everything a client, aggregator or evaluator needs to know about an artifact folder."""

    version: Literal[1]
    name: str
    mode: Annotated[str, Field(pattern=r"^(head|head-weight|full|last-[1-9][0-9]*|lora:[1-9][0-9]*)$")]
    model: ModelFacts
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    label_smoothing: Annotated[float, Field(ge=0, lt=1)]
    optimizer: OptimizerFacts
    trainable: tuple[TrainableTensor, ...]
    trainable_count: Annotated[int, Field(gt=0)]
    files: ArtifactFiles
    prefix: PrefixFacts | None = None
    memory: MemoryFacts
    base: dict[str, JsonValue]
    build: BuildFacts

    @model_validator(mode="after")
    def _prefix_has_its_files(self) -> Self:
        files = self.files
        split = (files.prefix_model, files.suffix_training_model, files.suffix_eval_model, files.suffix_checkpoint)
        if any((file is None) != (self.prefix is None) for file in split):
            raise ValueError("a prefix and its four files go together")
        return self

    @model_validator(mode="after")
    def _tensors_tile_the_buffer(self) -> Self:
        offset = 0
        for tensor in self.trainable:
            if tensor.offset != offset:
                raise ValueError(f"{tensor.name} starts at {tensor.offset}, expected {offset}")
            offset += tensor.count
        if offset != self.trainable_count or self.files.trainable.size != 4 * offset:
            raise ValueError(f"trainable tensors hold {offset} elements, the manifest says {self.trainable_count}")
        return self


def load_manifest(directory: Path, *, verify: bool = True) -> ArtifactManifest:
    """Return the manifest of an artifact folder, after checking size and SHA-256 of each file if `verify`.

    Raises ManifestError when it is missing or malformed and ArtifactIntegrityError when a file does not match.
    """
    path = directory / MANIFEST_NAME
    try:
        manifest = ArtifactManifest.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise ManifestError(
            f"{directory} has no {MANIFEST_NAME}", hint="build one with `fedbus artifacts build`"
        ) from error
    except ValidationError as error:
        raise ManifestError(f"{path} is not an artifact manifest: {error}") from error
    if verify:
        for _, file in manifest.files.items():
            _verify(directory, file)
    return manifest


def artifact_paths(manifest: ArtifactManifest, directory: Path) -> dict[str, Path]:
    """Return the path of each file by its role, as NativeTrainer takes them."""
    return {role: directory / file.path for role, file in manifest.files.items()}


def describe_file(directory: Path, name: str, media_type: str) -> ArtifactFile:
    """Return the manifest entry of a file that lies in the folder."""
    path = directory / name
    return ArtifactFile(path=name, size=path.stat().st_size, sha256=sha256_of(path), media_type=media_type)


def _verify(directory: Path, file: ArtifactFile) -> None:
    path = directory / file.path
    if not path.is_file():
        raise ArtifactIntegrityError(f"{path} is missing")
    if path.stat().st_size != file.size:
        raise ArtifactIntegrityError(f"{path} has {path.stat().st_size} bytes, the manifest says {file.size}")
    digest = sha256_of(path)
    if digest != file.sha256:
        raise ArtifactIntegrityError(f"{path} has SHA-256 {digest}, the manifest says {file.sha256}")
