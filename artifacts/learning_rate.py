"""Sets the learning rate in the bytes of an optimizer model, without onnx: the browser does the same.

The rate is one raw float32 among the graph's initializers. Four bytes change, at a place that a walk over the protobuf
fields finds (encoding: https://protobuf.dev/programming-guides/encoding/; field numbers: onnx.proto, IR version 10).
``browser_client/src/training/learning_rate.ts`` follows the same steps, and shared vectors hold both to the same bytes.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator

from artifacts.errors import OptimizerModelError

_MODEL_GRAPH, _GRAPH_INITIALIZER = 7, 5
_TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_NAME, _TENSOR_RAW = 1, 2, 8, 9
_FLOAT = 1
_VARINT, _EIGHT_BYTES, _LENGTH, _FOUR_BYTES = 0, 1, 2, 5
_LONGEST_VARINT = 10
_HINT = "rebuild the artifacts"
Span = tuple[int, int]
"""From one byte to before another."""


def with_learning_rate(optimizer_model: bytes, initializer: str, learning_rate: float) -> bytes:
    """Return the optimizer model with another learning rate; the same arguments always give the same bytes.

    `initializer` is the name that the manifest gives (`optimizer.learning_rate_initializer`). Raises
    OptimizerModelError when the model cannot be read or has no raw float32 [1] of that name, or the rate is not a
    positive finite float32.
    """
    try:
        rate = struct.pack("<f", learning_rate)
    except OverflowError:
        rate = struct.pack("<f", math.inf)
    if not 0 < struct.unpack("<f", rate)[0] < math.inf:
        raise OptimizerModelError(f"the learning rate {learning_rate} is not a positive finite number")
    at = _place(optimizer_model, initializer)
    return optimizer_model[:at] + rate + optimizer_model[at + 4 :]


def _place(model: bytes, name: str) -> int:
    """Return where the four bytes of the initializer begin."""
    for graph, graph_span in _fields(model, (0, len(model))):
        if graph != _MODEL_GRAPH or isinstance(graph_span, int):
            continue
        for field, span in _fields(model, graph_span):
            if field == _GRAPH_INITIALIZER and not isinstance(span, int):
                at = _raw_float(model, span, name.encode())
                if at is not None:
                    return at
    raise OptimizerModelError(f"the optimizer model has no float32 [1] initializer {name!r}", hint=_HINT)


def _raw_float(model: bytes, tensor: Span, name: bytes) -> int | None:
    """Return where a tensor's raw value begins, if it is the float32 [1] of this name."""
    named, kind, dims, raw = False, 0, list[int](), None
    for field, value in _fields(model, tensor):
        if isinstance(value, int):
            kind = value if field == _TENSOR_TYPE else kind
            dims += [value] if field == _TENSOR_DIMS else []
        elif field == _TENSOR_NAME:
            named = model[slice(*value)] == name
        elif field == _TENSOR_RAW:
            raw = value
    if not named or kind != _FLOAT or dims != [1] or raw is None or raw[1] - raw[0] != 4:
        return None
    return raw[0]


def _fields(model: bytes, span: Span) -> Iterator[tuple[int, int | Span]]:
    """Yield (number, value) of each field of a message: a varint as a number, bytes as their span; others are skipped.

    Raises OptimizerModelError when the bytes are no message.
    """
    at, end = span
    while at < end:
        key, at = _varint(model, at, end)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, at = _varint(model, at, end)
            yield number, value
            continue
        if wire == _LENGTH:
            size, at = _varint(model, at, end)
        elif wire in (_EIGHT_BYTES, _FOUR_BYTES):
            size = 8 if wire == _EIGHT_BYTES else 4
        else:
            raise OptimizerModelError("the optimizer model is not an ONNX model", hint=_HINT)
        if size > end - at:
            raise OptimizerModelError("the optimizer model is not an ONNX model: it is cut", hint=_HINT)
        if wire == _LENGTH:
            yield number, (at, at + size)
        at += size


def _varint(model: bytes, at: int, end: int) -> tuple[int, int]:
    """Return the number that begins at a byte, and where the next thing begins."""
    value = 0
    for index in range(_LONGEST_VARINT):
        if at + index >= end:
            break
        byte = model[at + index]
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, at + index + 1
    raise OptimizerModelError("the optimizer model is not an ONNX model: a number does not end", hint=_HINT)
