"""Optimizer models: how a training step applies gradients, as a small ONNX graph that carries its learning rate."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from onnx import TensorProto, helper, numpy_helper

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
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def _scalar(name: str, value: float) -> Any:
    return numpy_helper.from_array(np.array([value], dtype="<f4"), name)
