"""The manifest of an artifact folder: what is in it, what trains, and the digests that prove it."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, ValidationError, model_validator

from artifacts.errors import ArtifactIntegrityError, ManifestError
from bus.process.files import sha256_of
from bus.words.problems import what_is_wrong
from bus.words.values import Ref
from data.class_names import ClassNames

MANIFEST_NAME = "manifest.json"
DEFAULT_KIND = "image-classification"
ORT_TRAINING = "ort-training"
"""The engine of onnxruntime's training build, native and in the browser; a manifest without `engines` may have it."""
TRAINABLE = "trainable"
"""The role of the file that every engine starts from: the initial trainable buffer as raw little-endian float32."""
_OPTIMIZER = "optimizer_model"
_WHOLE = ("training_model", "eval_model", "checkpoint")
_SPLIT = ("prefix_model", "suffix_training_model", "suffix_eval_model", "suffix_checkpoint")
_Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]


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
    is the float32 initializer `learning_rate_initializer` of the optimizer model; an engine rewrites it for each round
    (`artifacts.learning_rate`).
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


def _without_absent(files: object) -> object:
    """A manifest of before named a file that is not there as null."""
    return {role: file for role, file in files.items() if file is not None} if isinstance(files, dict) else files


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
    """Everything a client, aggregator or evaluator needs to know about an artifact folder.

    `kind` is the kind of task that the model is for. `files` are by role: `trainable`, and what engines open. `engines`
    says for each engine that has all its files here which roles it opens; see `offered`.

    For ort-training these are training model, eval model, checkpoint and optimizer model. Where a frozen part comes
    first, `prefix_model` (plain inference) and the three of the suffix do the same as the first three, without running
    the frozen part again for an image seen before.
    """

    version: Literal[1]
    name: str
    kind: _Name = DEFAULT_KIND
    mode: Annotated[str, Field(pattern=r"^(head|head-weight|full|last-[1-9][0-9]*|lora:[1-9][0-9]*)$")]
    model: ModelFacts
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    label_smoothing: Annotated[float, Field(ge=0, lt=1)]
    optimizer: OptimizerFacts
    trainable: tuple[TrainableTensor, ...]
    trainable_count: Annotated[int, Field(gt=0)]
    files: Annotated[dict[_Name, ArtifactFile], BeforeValidator(_without_absent)]
    engines: dict[_Name, tuple[_Name, ...]] = {}
    prefix: PrefixFacts | None = None
    memory: MemoryFacts
    base: dict[str, JsonValue]
    build: BuildFacts

    @property
    def offered(self) -> dict[str, tuple[str, ...]]:
        """The engines that find their files here, with the roles that each opens.

        A manifest that does not say has what its files show: those of ort-training, of the split where there is one.
        """
        if self.engines:
            return self.engines
        roles = (*(_WHOLE if self.prefix is None else _SPLIT), _OPTIMIZER)
        return {ORT_TRAINING: roles} if self.files.keys() >= set(roles) else {}

    def files_of(self, engine: str) -> dict[str, ArtifactFile]:
        """Return by role the files that an engine opens, which has to be one of those `offered`."""
        return {role: self.files[role] for role in self.offered[engine]}

    @model_validator(mode="after")
    def _roles_have_files(self) -> Self:
        if self.prefix is None and (split := self.files.keys() & set(_SPLIT)):
            raise ValueError(f"{', '.join(sorted(split))} without the facts of a prefix")
        wanted = {TRAINABLE, *(_SPLIT if self.prefix is not None else ())}
        if missing := wanted.union(*self.engines.values()) - self.files.keys():
            raise ValueError(f"there is no file for {', '.join(sorted(missing))}")
        return self

    @model_validator(mode="after")
    def _tensors_tile_the_buffer(self) -> Self:
        offset = 0
        for tensor in self.trainable:
            if tensor.offset != offset:
                raise ValueError(f"{tensor.name} starts at {tensor.offset}, expected {offset}")
            offset += tensor.count
        if offset != self.trainable_count or self.files[TRAINABLE].size != 4 * offset:
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
        raise ManifestError(f"{path} is not an artifact manifest: {what_is_wrong(error)}") from error
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
