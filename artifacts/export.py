"""From a torch Vision Transformer to the ONNX graph of its forward pass, with the parameters that train marked."""

from __future__ import annotations

import copy
import re
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import torch
from peft import LoraConfig, get_peft_model
from transformers import ViTForImageClassification

from artifacts.errors import ExportError, TrainModeError
from artifacts.modes import TrainMode

PIXELS, LOGITS, LABELS, LOSS = "pixel_values", "logits", "labels", "loss"
# LayerNorm becomes primitive nodes here; the gradient builder aborts on the LayerNormalization of opset 17.
OPSET = 15
LORA_SCALE = 2.0
_PROTOBUF_LIMIT = 2**31 - 2**24
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


def plain_name(name: str) -> str:
    """Return a parameter's name without the marks of wrapping modules."""
    return _WRAPPING.sub("", name)


def export_forward(trainable: TrainableModel, *, channels: int, image_size: int) -> Any:
    """Return the ONNX model from PIXELS to LOGITS with a dynamic batch, its initializers under their plain names.

    Raises ExportError when the model is too large for one protobuf message or a parameter got lost on the way.
    """
    size = sum(parameter.numel() for _, parameter in trainable.plain_parameters()) * 4
    if size > _PROTOBUF_LIMIT:
        raise ExportError(f"the model has {size / 1e9:.1f} GB of parameters; ONNX without external data ends at 2 GB")
    # In eval mode parameters of equal value, such as all zero biases, would become one and share a gradient.
    trainable.train()
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "forward.onnx"
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        torch.onnx.export(
            trainable,
            (torch.zeros(2, channels, image_size, image_size),),
            path,
            input_names=[PIXELS],
            output_names=[LOGITS],
            dynamic_axes={PIXELS: {0: "batch"}, LOGITS: {0: "batch"}},
            opset_version=OPSET,
            training=torch.onnx.TrainingMode.TRAINING,
            do_constant_folding=False,
            dynamo=False,
        )
        exported = onnx.load(path)
    trainable.eval()
    _remove_dropout(exported.graph)
    _remove_unused(exported.graph)
    _rename(
        exported.graph,
        {initializer.name: _exported_name(initializer.name) for initializer in exported.graph.initializer},
    )
    expected = {name for name, _ in trainable.plain_parameters()}
    missing = expected - {initializer.name for initializer in exported.graph.initializer}
    if missing:
        raise ExportError(f"the exporter dropped {len(missing)} parameters, such as {sorted(missing)[0]}")
    return exported


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


def _exported_name(name: str) -> str:
    return plain_name(name.removeprefix("wrapped."))


def _remove_dropout(graph: Any) -> None:
    """Take out the Dropout nodes that functional calls left; their ratio is zero."""
    sources = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Dropout"}
    kept = [node for node in graph.node if node.op_type != "Dropout"]
    for node in kept:
        for position, name in enumerate(node.input):
            while name in sources:
                name = sources[name]
            node.input[position] = name
    del graph.node[:]
    graph.node.extend(kept)


def _remove_unused(graph: Any) -> None:
    """Take out the nodes and initializers that no output depends on."""
    needed = {value.name for value in graph.output}
    kept = []
    # Nodes are in topological order, so what a node needs comes before it.
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(node)
    initializers = [tensor for tensor in graph.initializer if tensor.name in needed]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(reversed(kept))
    graph.initializer.extend(initializers)


def _rename(graph: Any, names: dict[str, str]) -> None:
    if len(set(names.values())) != len(names):
        raise ExportError("two parameters of the model have the same name once their wrapping is taken off")
    for initializer in graph.initializer:
        initializer.name = names[initializer.name]
    for node in graph.node:
        for position, name in enumerate(node.input):
            node.input[position] = names.get(name, name)
