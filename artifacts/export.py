"""From torch to ONNX: the graph of a model's forward pass, fit for deriving a gradient or for inference."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Any

import onnx
import torch

from artifacts.errors import ExportError
from artifacts.torch_models import FrozenPrefix, TrainableModel, plain_name

PIXELS, ACTIVATIONS, LOGITS, LABELS, LOSS = "pixel_values", "activations", "logits", "labels", "loss"
# LayerNorm becomes primitive nodes here; the gradient builder aborts on the LayerNormalization of opset 17.
OPSET = 15
_PROTOBUF_LIMIT = 2**31 - 2**24
# onnxruntime 1.19.2 refuses newer ones.
IR_VERSION = 10


def export_forward(model: TrainableModel, example: torch.Tensor, *, source: str) -> Any:
    """Return the ONNX model from `source`, shaped as the example, to LOGITS with a dynamic batch.

    Its initializers have their plain names. Raises ExportError when the model is too large for one protobuf message
    or a parameter got lost on the way.
    """
    # In eval mode parameters of equal value, such as all zero biases, would become one and share a gradient.
    model.train()
    exported = _export(model, example, source, LOGITS, torch.onnx.TrainingMode.TRAINING)
    model.eval()
    _remove_dropout(exported.graph)
    _remove_unused(exported.graph)
    _rename(exported.graph, {tensor.name: _exported_name(tensor.name) for tensor in exported.graph.initializer})
    expected = {name for name, _ in model.plain_parameters()}
    missing = expected - {initializer.name for initializer in exported.graph.initializer}
    if missing:
        raise ExportError(f"the exporter dropped {len(missing)} parameters, such as {sorted(missing)[0]}")
    return exported


def export_prefix(prefix: FrozenPrefix, example: torch.Tensor) -> Any:
    """Return the inference model from PIXELS to ACTIVATIONS with a dynamic batch, its weights folded in."""
    return _export(prefix.eval(), example, PIXELS, ACTIVATIONS, torch.onnx.TrainingMode.EVAL)


def _export(
    module: torch.nn.Module, example: torch.Tensor, source: str, target: str, training: torch.onnx.TrainingMode
) -> Any:
    size = sum(parameter.numel() for parameter in module.parameters()) * 4
    if size > _PROTOBUF_LIMIT:
        raise ExportError(f"the model has {size / 1e9:.1f} GB of parameters; ONNX without external data ends at 2 GB")
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "forward.onnx"
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        torch.onnx.export(
            module,
            (example,),
            path,
            input_names=[source],
            output_names=[target],
            dynamic_axes={source: {0: "batch"}, target: {0: "batch"}},
            opset_version=OPSET,
            training=training,
            do_constant_folding=training == torch.onnx.TrainingMode.EVAL,
            dynamo=False,
        )
        exported = onnx.load(path)
    exported.ir_version = min(exported.ir_version, IR_VERSION)
    return exported


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
