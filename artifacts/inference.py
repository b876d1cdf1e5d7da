"""An ONNX model to predict with: the graph and all weights in one file, which any ONNX runtime opens."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from artifacts.errors import TakeOutError
from artifacts.manifest import DEFAULT_KIND, ArtifactManifest, ModelFacts
from artifacts.pixels import pixel_table, to_pixel_values
from artifacts.weights import Weights

PIXELS, LOGITS = "pixel_values", "logits"
KIND, FACTS = "fedbus.kind", "fedbus.model"
"""The metadata that say what kind of task it is for, and as JSON what goes in and comes out: size, mean, classes."""

_BATCH_VALUES = 1 << 17


def inference_model(manifest: ArtifactManifest, eval_model: Path, weights: Weights, **properties: str) -> bytes:
    """The ONNX model from PIXELS float32 [n, C, H, W] to LOGITS float32 [n, classes], its weights inside.

    Pixel values are (uint8/255 - mean) / std. ``properties`` become metadata, beside the model's facts.

    Raises:
        TakeOutError: the graph of the artifacts cannot be read, or needs a weight that is not there.
    """
    # Here, because it is heavy, and who only names the forms of a model does without.
    import onnx

    try:
        whole = onnx.load(eval_model)
        whole.graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in weights.items())
        # What only the loss needs goes, and what was an input is a constant now.
        taken = {value.name for value in whole.graph.input} - weights.keys()
        plain = onnx.utils.Extractor(whole).extract_model([PIXELS], [LOGITS])
    except (OSError, ValueError, KeyError, onnx.checker.ValidationError) as error:
        raise TakeOutError(f"the graph of the artifacts cannot be used: {error}", hint="build them again") from None
    if lacking := sorted(taken - {PIXELS, "labels"}):
        raise TakeOutError(f"the graph needs {len(lacking)} weights that are not there, such as {lacking[0]}")
    plain.ir_version, plain.producer_name = whole.ir_version, "fedbus"
    onnx.helper.set_model_props(plain, {KIND: manifest.kind, FACTS: manifest.model.model_dump_json(), **properties})
    return bytes(plain.SerializeToString())


class InferenceModel:
    """An opened ONNX model that ``inference_model`` made."""

    def __init__(self, model: bytes | Path) -> None:
        """Raises TakeOutError when it is none; ``facts`` are what its metadata says of it."""
        # Here, for the same reason.
        from artifacts.onnxruntime_alone import InferenceSession, ort

        try:
            self._session: Any = InferenceSession(str(model) if isinstance(model, Path) else model)
            properties: Mapping[str, str] = self._session.get_modelmeta().custom_metadata_map
            self.kind = properties.get(KIND, DEFAULT_KIND)
            self.facts = ModelFacts.model_validate_json(properties.get(FACTS, ""))
        except (OSError, ort.Fail, ort.InvalidGraph, ort.InvalidProtobuf, ort.NoSuchFile, ort.InvalidArgument):
            raise TakeOutError(f"{_name(model)} is no ONNX model that can be run") from None
        except ValidationError:
            raise TakeOutError(
                f"{_name(model)} does not say what pictures it takes", hint="fedbus model export writes one that does"
            ) from None

    def logits(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Logits float32 [n, classes] of uint8 images [n, H, W, C]."""
        table = pixel_table(self.facts.mean, self.facts.std)
        size = max(1, _BATCH_VALUES // images[0].size)
        parts = [images[start : start + size] for start in range(0, len(images), size)]
        return np.concatenate([self._session.run([LOGITS], {PIXELS: to_pixel_values(one, table)})[0] for one in parts])


def _name(model: bytes | Path) -> str:
    return str(model) if isinstance(model, Path) else "the model"
