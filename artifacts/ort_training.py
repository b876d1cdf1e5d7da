"""The native engine: onnxruntime's training sessions without the parts of its Python API that import torch."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from artifacts.errors import EngineError
from artifacts.learning_rate import with_learning_rate
from artifacts.manifest import ArtifactManifest
from artifacts.onnxruntime_alone import InferenceSession, ort

# What the results of one forward pass may take; larger batches are no faster.
_FORWARD_BYTES = 512 * 1024 * 1024

# Training sessions raise RuntimeError, inference sessions what onnxruntime derives from Exception alone.
_REFUSALS = (RuntimeError, ort.Fail, ort.InvalidGraph, ort.InvalidProtobuf, ort.NoSuchFile, ort.NotImplemented)


class NativeTrainer:
    """Predicts with and trains one copy of the model; not safe for use from several threads at once.

    `files` maps the roles training_model, eval_model, checkpoint and optimizer_model to paths; where the manifest has a
    prefix and `files` a prefix_model, it takes the three of the suffix instead and runs the frozen part apart. Then
    `features` are worth keeping: every method that takes pixel values takes features too. It raises EngineError when
    onnxruntime refuses a file. Its rate is that of the optimizer model until `begin` names another one.
    """

    def __init__(self, manifest: ArtifactManifest, files: Mapping[str, Path], *, threads: int = 1) -> None:
        self.manifest = manifest
        self._files = {role: os.fspath(path) for role, path in files.items()}
        self._device = ort.OrtDevice(ort.OrtDevice.cpu(), ort.OrtDevice.default_memory(), 0)
        self._options = ort.SessionOptions()
        self._options.intra_op_num_threads = threads
        self._options.inter_op_num_threads = 1
        self._optimizer_model: bytes | None = None
        self._rate: float | None = None
        self._prefix = manifest.prefix if "prefix_model" in self._files else None
        self._batch = max(1, _FORWARD_BYTES // manifest.memory.forward_per_image)
        self._prefix_session: Any = None
        self._optimizer: Any = None
        self._module: Any = None
        self._state: Any = None
        self._trained = False
        self._open()

    def __del__(self) -> None:
        self._close()

    def begin(self, base: NDArray[np.float32], learning_rate: float | None) -> None:
        """Set the parameters, and for training the rate of all steps from now on; what the optimizer knew is forgotten.

        Raises OptimizerModelError when the optimizer model cannot take the rate.
        """
        # A gradient that is no number stays in the session's buffers, whatever comes after it.
        if self._trained and not np.isfinite(self.parameters()).all():
            self._open()
        self._trained = False
        if learning_rate is not None and learning_rate != self._rate:
            initializer = self.manifest.optimizer.learning_rate_initializer
            self.set_optimizer(with_learning_rate(self._optimizer_bytes(), initializer, learning_rate))
            self._rate = learning_rate
        elif learning_rate is not None:
            self.reset_optimizer()
        self.load_parameters(base)

    def load_parameters(self, parameters: NDArray[np.float32]) -> None:
        """Set the trainable parameters from the contiguous buffer, float32 [trainable_count]."""
        expected = (self.manifest.trainable_count,)
        if parameters.shape != expected or parameters.dtype != np.float32:
            raise EngineError(f"parameters are {parameters.dtype} {parameters.shape}, expected float32 {expected}")
        self._copy_in(np.ascontiguousarray(parameters))

    def parameters(self) -> NDArray[np.float32]:
        """Return a copy of the trainable parameters as one buffer, float32 [trainable_count]."""
        shape = [self.manifest.trainable_count]
        value = ort.OrtValue.ortvalue_from_shape_and_type(shape, np.float32, self._device)
        self._module.copy_parameters_to_buffer(value, True)
        # OrtValue.numpy() may share memory with the value, which dies here.
        return np.array(value.numpy(), dtype=np.float32, copy=True)

    def features(self, pixel_values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return what the trained part takes for pixel values float32 [n, C, H, W], to be used again for the images.

        With a prefix these are its activations float32 [n, *shape], otherwise the pixel values themselves.
        """
        self._check_batch(pixel_values)
        if self._prefix is None or pixel_values.ndim != 4:
            return pixel_values
        name = self._prefix.input
        parts = [self._prefix_session.run(None, {name: part})[0] for part in self._parts(pixel_values)]
        return np.concatenate(parts)

    def predict(self, pixel_values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return logits float32 [n, classes] for pixel values float32 [n, C, H, W]."""
        return self._evaluate(pixel_values, np.zeros(len(pixel_values), dtype=np.int64))[1]

    def evaluate(
        self, pixel_values: NDArray[np.float32], labels: NDArray[np.int64]
    ) -> tuple[float, NDArray[np.float32]]:
        """Return the loss (mean over the batch, with label smoothing) and logits float32 [n, classes]."""
        self._check_labels(labels, len(pixel_values))
        return self._evaluate(pixel_values, labels)

    def train_step(self, pixel_values: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
        """Take one optimizer step on the batch, float32 [n, C, H, W] and int64 [n]; return its loss before the step."""
        self._check_labels(labels, len(pixel_values))
        features = self.features(pixel_values)
        self._trained = True
        fetches = ort.OrtValueVector()
        self._module.train_step([np.ascontiguousarray(features), labels], fetches)
        self._optimizer.optimizer_step()
        self._module.lazy_reset_grad()
        return float(fetches[0].numpy())

    def set_optimizer(self, model: bytes | Path) -> None:
        """Replace the optimizer model; the state of AdamW starts afresh."""
        self._optimizer_model = model if isinstance(model, bytes) else model.read_bytes()
        self._rate = None
        if self.manifest.optimizer.stateless:
            self._open_optimizer()
        else:
            self.reset_optimizer()

    def reset_optimizer(self) -> None:
        """Forget what the optimizer remembers, so that nothing leaks into another user's task; keep the parameters.

        A stateless optimizer has nothing to forget. For others it costs opening the sessions again, because the
        moments live in a checkpoint state that cannot be cleared.
        """
        if not self.manifest.optimizer.stateless:
            parameters = self.parameters()
            self._open()
            self.load_parameters(parameters)

    def _close(self) -> None:
        # Module and optimizer point into the state without keeping it alive, so they have to go before it.
        self._optimizer = None
        self._module = None
        self._state = None

    def _open(self) -> None:
        self._close()
        try:
            part = "" if self._prefix is None else "suffix_"
            self._state = ort.load_checkpoint(self._files[f"{part}checkpoint"])
            self._module = ort.Module(
                self._files[f"{part}training_model"],
                self._state,
                self._files[f"{part}eval_model"],
                self._device,
                self._options,
            )
            if self._prefix is not None and self._prefix_session is None:
                self._prefix_session = InferenceSession(self._files["prefix_model"], self._options)
        except KeyError as error:
            raise EngineError(f"no path was given for the file {error}") from error
        except _REFUSALS as error:
            raise EngineError(f"onnxruntime cannot open the artifacts: {error}") from error
        found = self._module.get_parameters_size(True)
        if found != self.manifest.trainable_count:
            raise EngineError(f"the artifacts train {found} parameters, the manifest says otherwise")
        self._open_optimizer()

    def _open_optimizer(self) -> None:
        model = self._optimizer_bytes()
        # The C++ constructor takes nothing but a path.
        with tempfile.NamedTemporaryFile(suffix=".onnx") as stream:
            stream.write(model)
            stream.flush()
            try:
                self._optimizer = ort.Optimizer(stream.name, self._state, self._device, self._options)
            except _REFUSALS as error:
                raise EngineError(f"onnxruntime cannot open the optimizer model: {error}") from error

    def _optimizer_bytes(self) -> bytes:
        if self._optimizer_model is None:
            self._optimizer_model = Path(self._files["optimizer_model"]).read_bytes()
        return self._optimizer_model

    def _copy_in(self, parameters: NDArray[np.float32]) -> None:
        value = ort.OrtValue.ortvalue_from_numpy(parameters, self._device)
        self._module.copy_buffer_to_parameters(value, True)

    def _evaluate(
        self, pixel_values: NDArray[np.float32], labels: NDArray[np.int64]
    ) -> tuple[float, NDArray[np.float32]]:
        losses, logits = 0.0, []
        for part, targets in zip(self._parts(self.features(pixel_values)), self._parts(labels), strict=True):
            fetches = ort.OrtValueVector()
            self._module.eval_step([np.ascontiguousarray(part), targets], fetches)
            losses += float(fetches[0].numpy()) * len(part)
            # OrtValue.numpy() may share memory with the value, which dies here.
            logits.append(np.array(fetches[1].numpy(), dtype=np.float32, copy=True))
        return losses / len(labels), np.concatenate(logits)

    def _parts(self, values: NDArray[Any]) -> Iterator[NDArray[Any]]:
        """Yield the largest batches whose results fit in the memory that a forward pass may take."""
        for start in range(0, len(values), self._batch):
            yield values[start : start + self._batch]

    def _check_batch(self, values: NDArray[np.float32]) -> None:
        model = self.manifest.model
        allowed: list[tuple[int, ...]] = [(model.channels, model.image_size, model.image_size)]
        if self._prefix is not None:
            allowed.append(self._prefix.shape)
        shape = values.shape
        if values.dtype != np.float32 or shape[1:] not in allowed or not shape[0]:
            raise EngineError(f"a batch is {values.dtype} {shape}, expected float32 [n, …] with … in {allowed}")

    def _check_labels(self, labels: NDArray[np.int64], count: int) -> None:
        if labels.dtype != np.int64 or labels.shape != (count,):
            raise EngineError(f"labels are {labels.dtype} {labels.shape}, expected int64 ({count},)")
        if count and not (labels.min() >= 0 and labels.max() < len(self.manifest.model.classes)):
            raise EngineError(f"labels must lie in 0..{len(self.manifest.model.classes) - 1}")
