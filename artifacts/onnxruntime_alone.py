"""Imports onnxruntime without torch, which its training build imports wherever it can, and which takes seconds."""

from __future__ import annotations

import sys

_absent = "torch" not in sys.modules
if _absent:
    # None makes an import of torch fail, and onnxruntime then does without; training sessions need nothing of it.
    sys.modules["torch"] = None  # type: ignore[assignment]
try:
    from onnxruntime import InferenceSession
    from onnxruntime.capi import _pybind_state as ort
finally:
    if _absent:
        del sys.modules["torch"]

__all__ = ["InferenceSession", "ort"]
