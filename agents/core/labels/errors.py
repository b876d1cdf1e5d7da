"""Why a run cannot get its labels."""

from __future__ import annotations

from bus.errors import FedbusError


class LabellingError(FedbusError):
    """A run cannot be labelled until somebody changes something; trying again does not help."""

    code = "labelling_impossible"


class LabelsFileError(LabellingError):
    """The file of recorded labels is missing, malformed or does not cover the run's users."""

    code = "labels_file_invalid"


class TruthMissingError(LabellingError):
    """The dataset has no usable ground truth for the provider ``truth``."""

    code = "truth_missing"
