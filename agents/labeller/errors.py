"""Typed errors of asking for labels: what ends a run's labelling, and what a person has to do about it."""

from __future__ import annotations

from agents.core.labels.errors import LabellingError
from bus.errors import FedbusError


class ApiKeyMissingError(LabellingError):
    """The provider ``openai`` has no API key."""

    code = "openai_key_missing"


class ApiKeyUnusableError(LabellingError):
    """The API key cannot be one: no header can hold it."""

    code = "openai_key_unusable"


class ApiRefusedError(LabellingError):
    """The API does not serve this account or request: key, quota, model or parameters are wrong."""

    code = "openai_refused"


class ApiUnavailableError(FedbusError):
    """The API does not answer now; the labelling goes on where it stopped when it is tried again."""

    code = "openai_unavailable"


class UnreadableRepliesError(LabellingError):
    """What the API says is never the JSON that it was asked for: the model cannot do this, or not so many images."""

    code = "openai_unreadable"


class NothingLabelledError(LabellingError):
    """Not one image got a label."""

    code = "nothing_labelled"


class CostLimitError(LabellingError):
    """Labelling would cost more than ``max_cost`` allows, or nobody knows what it costs."""

    code = "cost_limit"
