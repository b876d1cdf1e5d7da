"""FedAdam: the mean of the updates is a gradient, and the server takes an Adam step along it.

Source: Reddi et al., Adaptive Federated Optimization (2021, arXiv 2003.00295), algorithm 2, which has no correction for
the momenta's start. With delta, the mean of the updates as FedAvg weighs them, rounded to float32:

    m <- beta1 m + (1 - beta1) delta
    v <- beta2 v + (1 - beta2) delta^2
    x <- x + server_learning_rate m / (sqrt(v) + tau)

m is 0 before the first round and v is tau^2, the least that the paper allows. Each line is computed in float64 and
rounded to float32 once, and the third line takes m and v as they were rounded: what is published explains the step.
"""

from __future__ import annotations

import numpy as np
from pydantic import Field

from agents.core.strategies.gathering import RunningMean
from agents.core.strategies.strategy import Step, Strategy


class FedAdam(Strategy[RunningMean]):
    """Adam on the server; its momenta go from round to round."""

    NAME = "fedadam"
    CLIPS = True
    VECTORS = ("m", "v")

    server_learning_rate: float = Field(default=0.01, gt=0, le=1_000)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.99, ge=0, lt=1)
    tau: float = Field(default=1e-3, ge=1e-12, le=1, description="how little a coordinate adapts")

    def gather(self, parameters: int) -> RunningMean:
        """One running sum."""
        return RunningMean(parameters)

    def step(self, gathered: RunningMean, step: Step) -> None:
        """The three lines, block by block."""
        delta, m, v = step.model, step.after["m"], step.after["v"]
        gathered.write(delta)
        for block in step.blocks():
            d = delta[block].astype(np.float64)
            m_before, v_before = (
                (step.before["m"][block].astype(np.float64), step.before["v"][block].astype(np.float64))
                if step.before is not None
                else (0.0, self.tau * self.tau)
            )
            m[block] = self.beta1 * m_before + (1 - self.beta1) * d
            v[block] = self.beta2 * v_before + (1 - self.beta2) * (d * d)
            change = self.server_learning_rate * m[block].astype(np.float64)
            change /= np.sqrt(v[block].astype(np.float64)) + self.tau
            step.model[block] = step.parent[block].astype(np.float64) + change
