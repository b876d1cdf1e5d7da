"""From the graph of a forward pass to onnxruntime's training and eval models and its checkpoint."""

from __future__ import annotations

import os
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime import SessionOptions
from onnxruntime.capi import _pybind_state as ort

from artifacts.errors import ExportError
from artifacts.export import IR_VERSION, LABELS, LOGITS, LOSS

_ERROR_SEVERITY = 3


@dataclass(frozen=True)
class TrainingGraphs:
    """Both models compute (LOSS, LOGITS); `trainable` holds initial values in the order of the contiguous buffer."""

    training_model: Any
    eval_model: Any
    trainable: dict[str, NDArray[np.float32]]
    _parameters: tuple[list[Any], list[Any]]

    def save_checkpoint(self, path: Path) -> None:
        """Write all parameters, trainable and frozen, as onnxruntime's checkpoint."""
        trainable, frozen = ([tensor.SerializeToString() for tensor in tensors] for tensors in self._parameters)
        ort.save_checkpoint(trainable, frozen, os.fspath(path), False)


def build_training_graphs(
    forward: Any, *, trainable: Set[str], frozen: Set[str], label_smoothing: float
) -> TrainingGraphs:
    """Return the models that train `trainable` by cross-entropy on int64 LABELS [n], mean over the batch.

    Smoothing e replaces the target by (1 - e) onehot + e / classes (Szegedy et al. 2016, arXiv 1512.00567).
    `forward` computes LOGITS [n, classes] from its inputs and is changed. Raises ExportError when onnxruntime cannot
    derive the gradient.
    """
    tensors = {tensor.name: tensor for tensor in forward.graph.initializer}
    parameters = tuple([tensors[name] for name in tensors if name in names] for names in (trainable, frozen))
    _add_loss(forward.graph, label_smoothing)
    forward = onnx.shape_inference.infer_shapes(forward)
    _parameters_to_inputs(forward.graph, trainable | frozen)
    training_model = _training_model(forward, trainable)
    for model in (training_model, forward):
        model.ir_version = min(model.ir_version, IR_VERSION)
    # The contiguous parameter buffer follows the training model's inputs, here as in the browser.
    order = [value.name for value in training_model.graph.input if value.name in trainable]
    buffers = {name: numpy_helper.to_array(tensors[name]).astype(np.float32) for name in order}
    return TrainingGraphs(training_model, forward, buffers, parameters)  # type: ignore[arg-type]


def _add_loss(graph: Any, smoothing: float) -> None:
    def node(operator: str, inputs: list[str], *outputs: str, **attributes: Any) -> None:
        graph.node.append(helper.make_node(operator, inputs, outputs, name=outputs[0], **attributes))

    graph.input.append(helper.make_tensor_value_info(LABELS, TensorProto.INT64, ["batch"]))
    hard = "loss.hard" if smoothing else LOSS
    node("SoftmaxCrossEntropyLoss", [LOGITS, LABELS], hard, "loss.log_prob", reduction="mean")
    if smoothing:
        for name, value in (("loss.hard_share", 1.0 - smoothing), ("loss.soft_share", -smoothing)):
            graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), name))
        node("LogSoftmax", [LOGITS], "loss.log_softmax", axis=-1)
        node("ReduceMean", ["loss.log_softmax"], "loss.mean_log_softmax", keepdims=0)
        node("Mul", [hard, "loss.hard_share"], "loss.hard_part")
        node("Mul", ["loss.mean_log_softmax", "loss.soft_share"], "loss.soft_part")
        node("Add", ["loss.hard_part", "loss.soft_part"], LOSS)
    graph.output.insert(0, helper.make_tensor_value_info(LOSS, TensorProto.FLOAT, []))


def _parameters_to_inputs(graph: Any, names: Set[str]) -> None:
    """Make parameters inputs, as both sessions share them through the checkpoint."""
    moved = [tensor for tensor in graph.initializer if tensor.name in names]
    kept = [tensor for tensor in graph.initializer if tensor.name not in names]
    graph.input.extend(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims) for tensor in moved)
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _training_model(forward: Any, trainable: Set[str]) -> Any:
    options = SessionOptions()
    # The graph transformers otherwise report each of their steps on standard error.
    options.log_severity_level = _ERROR_SEVERITY
    try:
        optimized = ort.get_optimized_model(forward.SerializeToString(), set(trainable), options)
        builder = ort.GradientGraphBuilder(optimized, {LOSS}, set(trainable), LOSS, options)
        builder.build()
    except RuntimeError as error:
        raise ExportError(f"onnxruntime cannot derive the gradient of this model: {error}") from error
    model = onnx.load_model_from_string(builder.get_model())
    _accumulate_gradients(model.graph, trainable)
    return model


def _accumulate_gradients(graph: Any, trainable: Set[str]) -> None:
    """Replace the gradients among the outputs by accumulators, with the names that the training session knows."""
    outputs = {value.name: value for value in graph.output}
    results = [outputs[LOSS], outputs[LOGITS]]
    for name in [value.name for value in graph.input if value.name in trainable]:
        if f"{name}_grad" not in outputs:
            raise ExportError(f"{name} has no gradient")
        gradient = f"{name}_grad"
        buffer, done = f"{gradient}.accumulation.buffer", f"{gradient}.accumulation.out"
        graph.input.append(type(outputs[gradient])(name=buffer, type=outputs[gradient].type))
        graph.node.append(
            helper.make_node(
                "InPlaceAccumulatorV2",
                [buffer, gradient, "lazy_reset_grad"],
                [done],
                name=f"accumulate.{name}",
                domain="com.microsoft",
            )
        )
        results.append(helper.make_tensor_value_info(done, TensorProto.BOOL, [1]))
    graph.input.append(helper.make_tensor_value_info("lazy_reset_grad", TensorProto.BOOL, [1]))
    del graph.output[:]
    graph.output.extend(results)
