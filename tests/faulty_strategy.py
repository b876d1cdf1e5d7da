"""A strategy of the test's own that goes wrong where it is told to."""

from __future__ import annotations

import numpy as np

from agents.core.strategies.gathering import RunningMean
from agents.core.strategies.strategy import Step, Strategy

NAME = f"{__name__}:Faulty"
FAULTS = ("gather", "add", "weight", "step", "exit", "nan", "inf", "shape", "state")


class _Gathered(RunningMean):
    def __init__(self, parameters: int, fault: str) -> None:
        super().__init__(parameters)
        self._fault = fault

    def add(self, user: str, parts: object, weight: int) -> None:
        if self._fault == "add":
            raise KeyError("add")
        super().add(user, parts, weight)  # type: ignore[arg-type]

    @property
    def weight(self) -> int:
        if self._fault == "weight":
            raise RuntimeError("weight")
        return super().weight


class Faulty(Strategy[RunningMean]):
    """The weighted mean, unless it is faulty."""

    VECTORS = ("momentum",)
    fault: str = ""

    def gather(self, parameters: int) -> RunningMean:
        if self.fault == "gather":
            raise ZeroDivisionError("gather")
        return _Gathered(parameters, self.fault)

    def step(self, gathered: RunningMean, step: Step) -> None:
        gathered.added_to(step.parent, step.model)
        step.after["momentum"][:] = np.nan if self.fault == "state" else 0
        match self.fault:
            case "step":
                raise ValueError("step")
            case "exit":
                raise SystemExit(3)
            case "nan" | "inf":
                step.model[-1] = float(self.fault)
            case "shape":
                step.model.shape = (1, len(step.model))
