"""FedAvg: the new model is the old one plus the mean of the updates, weighted by examples.

Source: McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data (2017, arXiv
1602.05629); the sum is exact, see ``agents.core.learning.fixed_point``.
"""

from __future__ import annotations

from agents.core.strategies.gathering import RunningMean
from agents.core.strategies.strategy import Step, Strategy


class FedAvg(Strategy[RunningMean]):
    """The weighted mean; adds updates as they arrive and keeps nothing from round to round."""

    NAME = "fedavg"
    CLIPS = True

    def gather(self, parameters: int) -> RunningMean:
        """One running sum."""
        return RunningMean(parameters)

    def step(self, gathered: RunningMean, step: Step) -> None:
        """Parent plus mean."""
        gathered.added_to(step.parent, step.model)
