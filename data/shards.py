"""Shards: one user's images, or a held-out set, as the bytes of one safetensors object."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from data.errors import ShardError

MEDIA_TYPE = "application/x-safetensors"
MAX_SHARD_BYTES = 1 << 30
MAX_SIDE = 1024
MAX_CHANNELS = 4
BROKEN_TENSORS = (SafetensorError, ValueError, KeyError, TypeError, AttributeError)
"""What safetensors raises for bytes that are none, or of a type that numpy does not have (bfloat16, float8)."""
_IMAGES, _LABELS = "images", "labels"


def encode_shard(images: NDArray[np.uint8], labels: NDArray[np.int64] | None = None) -> bytes:
    """Return the shard of uint8 images [n, height, width, channels] and optional int64 labels [n].

    Equal arguments give equal bytes. Raises ShardError when the arrays are of other types or beyond the limits.
    """
    tensors: dict[str, NDArray[np.generic]] = {_IMAGES: np.ascontiguousarray(images)}
    if labels is not None:
        tensors[_LABELS] = np.ascontiguousarray(labels)
    _check(tensors)
    return bytes(save(tensors))


def decode_shard(content: bytes) -> tuple[NDArray[np.uint8], NDArray[np.int64] | None]:
    """Return the images uint8 [n, height, width, channels] and the labels int64 [n], if any, of a shard.

    Raises ShardError when the bytes are no shard or exceed the limits.
    """
    if len(content) > MAX_SHARD_BYTES:
        raise ShardError(f"a shard has at most {MAX_SHARD_BYTES} bytes, this one {len(content)}")
    try:
        tensors = load(content)
    except BROKEN_TENSORS as error:
        raise ShardError(f"the bytes are no safetensors object: {error}") from error
    _check(tensors)
    return tensors[_IMAGES], tensors.get(_LABELS)


def _check(tensors: dict[str, NDArray[np.generic]]) -> None:
    if _IMAGES not in tensors or not tensors.keys() <= {_IMAGES, _LABELS}:
        raise ShardError(f"a shard has the tensors images and perhaps labels, not {sorted(tensors)[:5]}")
    images, labels = tensors[_IMAGES], tensors.get(_LABELS)
    if images.dtype != np.uint8 or images.ndim != 4 or not images.size:
        raise ShardError(f"images are uint8 [n, height, width, channels], not {images.dtype} {images.shape}")
    count, height, width, channels = images.shape
    if max(height, width) > MAX_SIDE or channels > MAX_CHANNELS or images.nbytes > MAX_SHARD_BYTES:
        raise ShardError(f"images of shape {images.shape} exceed {MAX_SIDE} pixels, {MAX_CHANNELS} channels or 1 GiB")
    if labels is not None and (labels.dtype != np.int64 or labels.shape != (count,)):
        raise ShardError(f"labels are int64 [{count}], not {labels.dtype} {labels.shape}")
