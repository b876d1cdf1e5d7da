"""Runs a model over held-out images: what the evaluator and ``fedbus evaluate`` share."""

from __future__ import annotations

import asyncio

import numpy as np
from numpy.typing import NDArray

from artifacts.ort_training import NativeTrainer
from artifacts.pixels import pixel_table, to_pixel_values

BATCH_PIXELS = 1 << 17
"""Values of one batch of images: about as fast as any, and small in memory for large pictures."""


class HeldOutScorer:
    """One model's artifacts and the images to try it on; not safe for use by several tasks at once.

    Attributes:
        labels: true classes, int64 [n].
    """

    def __init__(self, trainer: NativeTrainer, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
        self._trainer = trainer
        self._images = images
        self._table = pixel_table(trainer.manifest.model.mean, trainer.manifest.model.std)
        self.labels = labels
        self._base: tuple[str, NDArray[np.float32]] | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes in the order of the logits."""
        return self._trainer.manifest.model.classes

    async def base_logits(self, digest: str, parameters: NDArray[np.float32]) -> NDArray[np.float32]:
        """Like ``logits``, for the model that every round is compared with: computed once."""
        if self._base is None or self._base[0] != digest:
            self._base = (digest, await self.logits(parameters))
        return self._base[1]

    async def logits(self, parameters: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits float32 [n, classes] of all images under these trainable parameters."""
        await asyncio.to_thread(self._trainer.load_parameters, parameters)
        size = max(1, BATCH_PIXELS // self._images[0].size)
        starts = range(0, len(self._images), size)
        # A batch at a time, so that heartbeats go on between the batches of a large model.
        return np.concatenate([await asyncio.to_thread(self._predict, self._images[i : i + size]) for i in starts])

    def _predict(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return self._trainer.predict(to_pixel_values(images, self._table))
