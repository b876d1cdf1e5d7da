"""The torch models that artifacts are built from: a whole Vision Transformer, and its frozen and trainable parts."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import ViTForImageClassification

from artifacts.errors import TrainModeError
from artifacts.modes import LORA_SCALE, TrainMode

# peft wraps modules; without its marks a parameter has the name that the plain model gives it.
_WRAPPING = re.compile(r"base_model\.model\.|base_layer\.|modules_to_save\.default\.|(?<=lora_[AB]\.)default\.")
_LAYER = re.compile(r"^vit\.layers\.(\d+)\.")


class TrainableModel(torch.nn.Module):
    """A copy of a Vision Transformer whose parameters require a gradient exactly when the mode trains them.

    It computes logits [n, classes] from pixel values [n, C, H, W], without dropout. The classifier that it uses is
    the one that trains, also with LoRA.
    """

    def __init__(self, model: ViTForImageClassification, mode: TrainMode, *, seed: int) -> None:
        super().__init__()
        self.wrapped = _prepare(copy.deepcopy(model), mode, seed)
        for name, parameter in self.plain_parameters():
            parameter.requires_grad_(_trains(name, mode, model.config.num_hidden_layers))

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return logits float32 [n, classes]."""
        logits: torch.Tensor = self.wrapped(pixel_values=pixel_values).logits
        return logits

    def plain_parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """Yield (name, parameter) of all that the forward pass uses, in the names of the unwrapped model."""
        for name, parameter in self.wrapped.named_parameters():
            if ".original_module." not in name:
                yield plain_name(name), parameter


class FrozenPrefix(torch.nn.Module):
    """The part of a whole model that no trained parameter touches, from pixel values to activations.

    Activations are [n, hidden] in front of the classifier for the head modes, else [n, tokens, hidden] in front of the
    first trained block.
    """

    def __init__(self, whole: TrainableModel, mode: TrainMode) -> None:
        super().__init__()
        self.wrapped = whole.wrapped
        self._cut = _cut(whole.wrapped, mode)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return activations, float32."""
        vit: Any = self.wrapped.vit
        hidden: torch.Tensor = vit.embeddings(pixel_values)
        for layer in vit.layers[: self._cut]:
            hidden = layer(hidden)
        return vit.layernorm(hidden)[:, 0] if self._cut is None else hidden


class TrainableSuffix(TrainableModel):
    """The rest of a whole model, with which it shares its parameters, from activations to logits."""

    def __init__(self, whole: TrainableModel, mode: TrainMode) -> None:
        torch.nn.Module.__init__(self)
        self.wrapped = whole.wrapped
        self._cut = _cut(whole.wrapped, mode)

    def forward(self, activations: torch.Tensor) -> torch.Tensor:
        """Return logits float32 [n, classes]."""
        model: Any = self.wrapped
        hidden = activations
        if self._cut is not None:
            for layer in model.vit.layers[self._cut :]:
                hidden = layer(hidden)
            hidden = model.vit.layernorm(hidden)[:, 0]
        logits: torch.Tensor = model.classifier(hidden)
        return logits

    def plain_parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """Yield (name, parameter) of what comes behind the cut."""
        for name, parameter in super().plain_parameters():
            layer = _LAYER.match(name)
            late = layer is not None and self._cut is not None and int(layer.group(1)) >= self._cut
            if name.startswith("classifier.") or late or (self._cut is not None and name.startswith("vit.layernorm.")):
                yield name, parameter


def has_frozen_prefix(mode: TrainMode) -> bool:
    """Return whether a mode leaves the first part of the model alone, so that the model can be cut in two."""
    return mode.kind in ("head", "head-weight", "last")


def _cut(model: torch.nn.Module, mode: TrainMode) -> int | None:
    """Return the first trained block, or nothing when the cut is behind the last one and the final norm."""
    layers: Any = model.config.num_hidden_layers  # type: ignore[union-attr]
    return int(layers) - mode.size if mode.kind == "last" else None


def _prepare(model: torch.nn.Module, mode: TrainMode, seed: int) -> torch.nn.Module:
    config: Any = model.config
    if mode.kind == "last" and mode.size > config.num_hidden_layers:
        raise TrainModeError(f"{mode} asks for more blocks than the {config.num_hidden_layers} that the model has")
    if mode.kind == "lora" and mode.size > config.hidden_size:
        raise TrainModeError(f"{mode} asks for a rank above the model's width of {config.hidden_size}")
    config._attn_implementation = "eager"
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0  # type: ignore[assignment]
    if mode.kind != "lora":
        return model
    lora = LoraConfig(
        r=mode.size,
        lora_alpha=int(LORA_SCALE * mode.size),
        lora_dropout=0.0,
        target_modules=["q_proj", "v_proj"],
        modules_to_save=["classifier"],
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # peft reads a property that this version of transformers has renamed.
        warnings.simplefilter("ignore", FutureWarning)
        torch.manual_seed(seed)
        adapted: torch.nn.Module = get_peft_model(model, lora)
    return adapted


def _trains(name: str, mode: TrainMode, layers: int) -> bool:
    head = name.startswith("classifier.")
    match mode.kind:
        case "head":
            return head
        case "head-weight":
            return name == "classifier.weight"
        case "last":
            layer = _LAYER.match(name)
            late = layer is not None and int(layer.group(1)) >= layers - mode.size
            return head or late or name.startswith("vit.layernorm.")
        case "lora":
            return head or ".lora_" in name
        case "full":
            return True


def plain_name(name: str) -> str:
    """Return a parameter's name without the marks of wrapping modules."""
    return _WRAPPING.sub("", name)
