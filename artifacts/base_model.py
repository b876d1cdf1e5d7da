"""Where a build starts from: a Vision Transformer of Hugging Face, with the pixel statistics it was trained on."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, ViTConfig, ViTForImageClassification
from transformers.utils import cached_file
from transformers.utils.logging import disable_progress_bar

from artifacts.errors import ExportError
from data.class_names import told_apart
from data.errors import PreparationError
from data.pictures import resizing_of

_PROCESSOR = "preprocessor_config.json"
_CARD_LICENCE = re.compile(r"\A---\s*\n(?:.*\n)*?license:\s*(\S+)", re.MULTILINE)
# What ViTImageProcessor assumes when a model says nothing.
_DEFAULT_MEAN = _DEFAULT_STD = 0.5


@dataclass(frozen=True)
class BaseModel:
    """A model to build artifacts from: pixel values are (uint8/255 - mean) / std, one number per channel."""

    model: ViTForImageClassification
    name: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    licence: str = "unknown"
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the logits, those that share one told apart by their ids."""
        labels = self.model.config.id2label
        return told_apart(str(labels[index]) for index in range(len(labels)))


def load_base(
    source: str, *, licence: str | None = None, classes: Sequence[str] | None = None, seed: int = 0
) -> BaseModel:
    """Return the model of a local folder (as `save_pretrained` writes it) or of a name on the Hugging Face hub.

    With `classes` it gets a fresh head for them. Raises ExportError when there is no such model, it is no ViT, lacks
    weights, or its processor settings cannot be kept.
    """
    disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(source)
        if config.model_type != "vit":
            raise ExportError(f"{source!r} is of the type {config.model_type!r}, not a Vision Transformer ('vit')")
        model, loaded = ViTForImageClassification.from_pretrained(
            source, attn_implementation="eager", dtype=torch.float32, output_loading_info=True
        )
    except ExportError:
        raise
    except Exception as error:
        # Broken weights and configurations make the libraries raise whatever they meet.
        raise ExportError(
            f"cannot load {source!r}: {error}",
            hint="name a folder written by save_pretrained, or a model on the hub that this machine can reach",
        ) from error
    head, body = _split(loaded["missing_keys"])
    if body:
        raise ExportError(f"{source!r} lacks {len(body)} weights, such as {body[0]}")
    if head and classes is None:
        raise ExportError(f"{source!r} has no classification head", hint="name the classes with --labels FILE")
    processor = _json_file(source, _PROCESSOR)
    if isinstance(size := model.config.image_size, int):
        _check_processor(processor, size, source)
    mean, std = _statistics(processor, model.config.num_channels)
    base = BaseModel(
        model=model.eval(),
        name=Path(source).name or source,
        mean=mean,
        std=std,
        licence=licence or _card_licence(source),
        facts={"source": source, "revision": getattr(config, "_commit_hash", None), "processor": processor},
    )
    return base if classes is None else with_classes(base, classes, seed=seed)


def _split(missing: Iterable[str]) -> tuple[list[str], list[str]]:
    names = sorted(missing)
    head = [name for name in names if name.startswith("classifier.")]
    return head, [name for name in names if name not in head]


def with_classes(base: BaseModel, classes: Sequence[str], *, seed: int) -> BaseModel:
    """Return the base with a fresh head for other classes: weights normal(0, initializer_range), biases zero.

    Classes that share a name are told apart by their ids. Raises ExportError when there are fewer than two classes.
    """
    if len(classes) < 2 or not all(name.strip() for name in classes):
        raise ExportError(f"{len(classes)} class names were given: at least two are needed, none empty")
    classes = told_apart(classes)
    config = ViTConfig.from_dict(base.model.config.to_dict())
    config.id2label = dict(enumerate(classes))
    config.label2id = {name: index for index, name in enumerate(classes)}
    config._attn_implementation = "eager"
    model = ViTForImageClassification(config)
    model.vit.load_state_dict(base.model.vit.state_dict())
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        model.classifier.weight.normal_(0.0, config.initializer_range, generator=generator)
        model.classifier.bias.zero_()
    return BaseModel(model, base.name, base.mean, base.std, base.licence, {**base.facts, "fresh_head": True})


def _json_file(source: str, name: str) -> dict[str, Any]:
    path = _optional_file(source, name)
    if path is None:
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ExportError(f"{name} of {source!r} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ExportError(f"{name} of {source!r} is not a JSON object")
    return content


def _optional_file(source: str, name: str) -> Path | None:
    found = cached_file(
        source,
        name,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return Path(found) if found else None


def _check_processor(processor: Mapping[str, Any], size: int, source: str) -> None:
    try:
        resizing_of(processor, size)
    except PreparationError as error:
        raise ExportError(f"{source!r}: {error.message}", hint=error.hint) from None


def _statistics(processor: Mapping[str, Any], channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and std for pixels in 0..1, whatever factor the processor rescales by."""
    normalize = processor.get("do_normalize", True)
    mean = _per_channel(processor.get("image_mean", _DEFAULT_MEAN) if normalize else 0.0, channels)
    std = _per_channel(processor.get("image_std", _DEFAULT_STD) if normalize else 1.0, channels)
    factor = processor.get("rescale_factor", 1 / 255) if processor.get("do_rescale", True) else 1.0
    scale = 255 * float(factor)
    # 255 * (1/255) is exactly 1, and 255 * 0.00392156862745098 is too.
    return tuple(value / scale for value in mean), tuple(value / scale for value in std)


def _per_channel(value: object, channels: int) -> tuple[float, ...]:
    values = tuple(value) if isinstance(value, list | tuple) else (value,)
    if len(values) == 1:
        values *= channels
    if len(values) != channels or not all(isinstance(number, int | float) for number in values):
        raise ExportError(f"the processor's mean or std {value!r} does not fit {channels} channels")
    return tuple(float(number) for number in values)


def _card_licence(source: str) -> str:
    card = _optional_file(source, "README.md")
    match = _CARD_LICENCE.search(card.read_text(encoding="utf-8")) if card else None
    return match.group(1) if match else "unknown"
