"""Optimizer models: how a training step applies gradients, as a small ONNX graph that carries its learning rate."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper, numpy_helper

from artifacts.errors import OptimizerModelError
from artifacts.manifest import ArtifactManifest

LEARNING_RATE_INITIALIZER = "fedbus.learning_rate"
_GAIN = "fedbus.learning_rate_gain"
# The training API feeds every optimizer model this learning rate, and JavaScript cannot change it.
_FED_LEARNING_RATE = 1e-3
# SGDOptimizerV2 does not load in the browser. AdamWOptimizer with both betas 0 computes g / (|g| + epsilon): with an
# epsilon far above any gradient, times epsilon, that is g itself, and its moments never influence the next step.
_STATELESS_EPSILON = 1e8
# onnxruntime 1.19.2 refuses newer ones.
_IR_VERSION = 10


def build_optimizer(
    kind: Literal["sgd", "adamw"],
    *,
    learning_rate: float,
    weight_decay: float = 0.0,
    clip_norm: float | None = None,
    betas: tuple[float, float] = (0.9, 0.999),
    epsilon: float = 1e-6,
) -> bytes:
    """Return an optimizer model for onnxruntime's training API, native and in the browser.

    "sgd" is p - lr * g without any state; "adamw" follows Loshchilov and Hutter 2019 (arXiv 1711.05101) as
    AdamWOptimizer implements it. `clip_norm` bounds the global L2 norm of the gradient before the step.
    """
    stateless = kind == "sgd"
    gain = (_STATELESS_EPSILON if stateless else 1.0) / _FED_LEARNING_RATE
    gradients = "gradients"
    nodes = [
        helper.make_node("Mul", ["learning_rate", _GAIN], ["unit"], name="cancel_fed_learning_rate"),
        helper.make_node("Mul", ["unit", LEARNING_RATE_INITIALIZER], ["rate"], name="apply_learning_rate"),
    ]
    values = []
    if clip_norm is not None:
        clip = helper.make_node(
            "InplaceClipGradNorm", [gradients], ["clipped"], name="clip", domain="com.microsoft", max_norm=clip_norm
        )
        nodes.append(clip)
        values.append(helper.make_tensor_sequence_value_info("clipped", TensorProto.FLOAT, None))
        gradients = "clipped"
    nodes.append(
        helper.make_node(
            "AdamWOptimizer",
            ["rate", "step", "params", gradients, "first_order_moments", "second_order_moments"],
            ["updated"],
            name="update",
            domain="com.microsoft",
            alpha=0.0 if stateless else betas[0],
            beta=0.0 if stateless else betas[1],
            epsilon=_STATELESS_EPSILON if stateless else epsilon,
            # The kernel multiplies the decay by the rate, which is epsilon times larger in the stateless form.
            weight_decay=weight_decay / _STATELESS_EPSILON if stateless else weight_decay,
            correct_bias=0 if stateless else 1,
            adam_mode=1,
        )
    )
    sequences = ["params", "gradients", "first_order_moments", "second_order_moments"]
    graph = helper.make_graph(
        nodes,
        "optimizer",
        inputs=[
            helper.make_tensor_value_info("learning_rate", TensorProto.FLOAT, [1]),
            helper.make_tensor_value_info("step", TensorProto.INT64, [1]),
            *(helper.make_tensor_sequence_value_info(name, TensorProto.FLOAT, None) for name in sequences),
        ],
        outputs=[helper.make_tensor_value_info("updated", TensorProto.BOOL, [1])],
        initializer=[_scalar(_GAIN, gain), _scalar(LEARNING_RATE_INITIALIZER, learning_rate)],
        value_info=values,
    )
    opsets = [helper.make_opsetid("", 15), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, producer_name="fedbus", opset_imports=opsets, ir_version=_IR_VERSION)
    return _serialize(model)


def with_learning_rate(optimizer_model: bytes, manifest: ArtifactManifest, learning_rate: float) -> bytes:
    """Return the optimizer model with another learning rate; the same arguments always give the same bytes.

    Raises OptimizerModelError when the model cannot be read, lacks the initializer that the manifest names, or the rate
    is not a positive finite float32.
    """
    model = _parse(optimizer_model)
    rate = np.float32(learning_rate)
    if not (np.isfinite(rate) and rate > 0):
        raise OptimizerModelError(f"the learning rate {learning_rate} is not a positive finite number")
    initializer = manifest.optimizer.learning_rate_initializer
    _find(model, initializer).CopyFrom(_scalar(initializer, learning_rate))
    return _serialize(model)


def learning_rate_of(optimizer_model: bytes, manifest: ArtifactManifest) -> float:
    """Return the learning rate that an optimizer model carries, rounded to float32.

    Raises OptimizerModelError when the model cannot be read or lacks the initializer that the manifest names.
    """
    initializer = manifest.optimizer.learning_rate_initializer
    return float(numpy_helper.to_array(_find(_parse(optimizer_model), initializer)).reshape(-1)[0])


def _parse(content: bytes) -> Any:
    try:
        model = onnx.load_model_from_string(content)
    except DecodeError as error:
        raise OptimizerModelError("the optimizer model is not an ONNX model") from error
    return model


def _find(model: Any, name: str) -> Any:
    for tensor in model.graph.initializer:
        if tensor.name == name and tensor.data_type == TensorProto.FLOAT and list(tensor.dims) == [1]:
            return tensor
    raise OptimizerModelError(
        f"the optimizer model has no float32 [1] initializer {name!r}", hint="rebuild the artifacts"
    )


def _scalar(name: str, value: float) -> Any:
    return numpy_helper.from_array(np.array([value], dtype="<f4"), name)


def _serialize(model: Any) -> bytes:
    content: bytes = model.SerializeToString(deterministic=True)
    return content
