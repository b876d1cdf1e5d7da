"""Whether what a run is told to do exists at all: seen before it starts, and again by whoever plans its rounds."""

from __future__ import annotations

from agents.core.learning.encodings import encoded_size
from agents.core.learning.kinds import check_kind
from agents.core.strategies.registry import strategy_named
from agents.words.run_config import RunConfig


def check_settings(config: RunConfig) -> None:
    """Sees to it that there are the config's kind of task, strategy with its settings, and encoding.

    Raises:
        FedbusError: the one of them that there is not.
    """
    check_kind(config.kind)
    strategy_named(config.strategy, config.strategy_settings)
    encoded_size(config.training.encoding, 1)
