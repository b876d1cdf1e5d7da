"""Typed errors of the artifacts package."""

from __future__ import annotations

from bus.errors import FedbusError


class ManifestError(FedbusError):
    """An artifact manifest is missing or malformed."""

    code = "artifact_manifest_invalid"


class ArtifactIntegrityError(FedbusError):
    """An artifact file has another size or SHA-256 than its manifest says."""

    code = "artifact_hash_mismatch"


class OptimizerModelError(FedbusError):
    """An optimizer model is malformed or lacks its learning rate initializer."""

    code = "optimizer_model_invalid"


class EngineError(FedbusError):
    """The native training engine got wrong input or failed to load its artifacts."""

    code = "native_engine_failed"


class ExportError(FedbusError):
    """A model cannot be turned into training artifacts."""

    code = "export_failed"


class TakeOutError(FedbusError):
    """A trained model cannot be written in, or read from, a form that others use."""

    code = "model_not_exportable"


class SelfCheckError(ExportError):
    """Freshly built artifacts do not compute what the torch model computes."""

    code = "artifact_self_check_failed"


class TrainModeError(ExportError):
    """The training mode is unknown or does not fit the model."""

    code = "train_mode_invalid"
