"""All parameters of a model that a run trained, by name: the frozen ones of its checkpoint and the trained ones."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from artifacts.errors import TakeOutError
from artifacts.manifest import ArtifactFile, ArtifactManifest
from artifacts.modes import LORA_SCALE

Weights = dict[str, NDArray[np.float32]]
"""Parameters by the names that the artifacts' graphs give them."""

_LORA = re.compile(r"\.lora_[AB]\.weight$")
# From the names of transformers 5 to those in which every version writes and reads files; the rest stays as it is.
_HUB_NAMES = (
    ("vit.layers.", "vit.encoder.layer."),
    (".attention.q_proj.", ".attention.attention.query."),
    (".attention.k_proj.", ".attention.attention.key."),
    (".attention.v_proj.", ".attention.attention.value."),
    (".attention.o_proj.", ".attention.output.dense."),
    (".mlp.fc1.", ".intermediate.dense."),
    (".mlp.fc2.", ".output.dense."),
)


@dataclass(frozen=True)
class WholeModel:
    """The files that a whole model is taken out of: the graph that evaluates, and the checkpoint of all parameters."""

    graph: ArtifactFile
    checkpoint: ArtifactFile


def whole_model(manifest: ArtifactManifest) -> WholeModel:
    """Where the whole model is among the files of the artifacts.

    Raises:
        TakeOutError: they are for other engines, and have no such files.
    """
    graph, checkpoint = manifest.files.get("eval_model"), manifest.files.get("checkpoint")
    if graph is None or checkpoint is None:
        raise TakeOutError(f"the artifacts {manifest.name!r} have no graph and checkpoint of the whole model")
    return WholeModel(graph, checkpoint)


def read_weights(manifest: ArtifactManifest, checkpoint: Path, trained: NDArray[np.float32]) -> Weights:
    """The frozen parameters of a checkpoint, and the trained ones from their buffer, float32 [trainable_count].

    Raises:
        TakeOutError: the checkpoint cannot be read, or the buffer is of another model.
    """
    if trained.shape != (manifest.trainable_count,):
        raise TakeOutError(f"{trained.size} parameters were given, the model trains {manifest.trainable_count}")
    # Here, because it is heavy, and who only names the forms of a model does without.
    from artifacts.onnxruntime_alone import ort

    try:
        state = ort.load_checkpoint(str(checkpoint))
    except RuntimeError as error:
        raise TakeOutError(f"the checkpoint cannot be read: {error}", hint="build the artifacts again") from None
    # A copy, because what the state gives is its own memory.
    weights = {name: np.array(state.get_parameter(name).data.numpy(), np.float32) for name in state.parameter_names()}
    for one in manifest.trainable:
        weights[one.name] = trained[one.offset : one.offset + one.count].reshape(one.shape).astype(np.float32)
    return weights


def merged(weights: Mapping[str, NDArray[np.float32]]) -> Weights:
    """The same model without LoRA: each adapted weight W becomes W + scale * B A (Hu et al. 2021, arXiv 2106.09685)."""
    plain = {name: value for name, value in weights.items() if not _LORA.search(name)}
    for name, a in weights.items():
        if name.endswith(".lora_A.weight"):
            target = name.removesuffix(".lora_A.weight")
            b = weights[f"{target}.lora_B.weight"]
            low_rank = LORA_SCALE * (b.astype(np.float64) @ a.astype(np.float64))
            plain[f"{target}.weight"] = (plain[f"{target}.weight"] + low_rank).astype(np.float32)
    return plain


def unadapted(weights: Mapping[str, NDArray[np.float32]], like: Mapping[str, NDArray[np.float32]]) -> Weights:
    """``weights`` with the LoRA tensors that ``like`` has and they lack, such that these change nothing."""
    missing = {name: np.zeros_like(value) for name, value in like.items() if _LORA.search(name) and name not in weights}
    return {**weights, **missing}


def hub_name(name: str) -> str:
    """The name that a parameter has in the files of the Hugging Face hub."""
    for ours, theirs in _HUB_NAMES:
        name = name.replace(ours, theirs)
    return name
