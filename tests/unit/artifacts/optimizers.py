"""What the optimizer models are meant to do, as torch optimizers."""

from __future__ import annotations

from typing import Any

import torch


class DecoupledSgd:
    """p <- (1 - rate * decay) (p - rate * gradient), the order in which AdamWOptimizer decays in its mode 1."""

    def __init__(self, tensors: list[Any], rate: float, decay: float) -> None:
        self._tensors, self._rate, self._decay = tensors, rate, decay

    def zero_grad(self) -> None:
        for tensor in self._tensors:
            tensor.grad = None

    @torch.no_grad()
    def step(self) -> None:
        for tensor in self._tensors:
            tensor.sub_(self._rate * self._direction(tensor))
            tensor.mul_(1 - self._rate * self._decay)

    def _direction(self, tensor: Any) -> Any:
        return tensor.grad


class OrtAdamW(DecoupledSgd):
    """As onnxruntime defines it: epsilon 1e-6 joins the second moment before bias correction."""

    def __init__(self, tensors: list[Any], rate: float, decay: float) -> None:
        super().__init__(tensors, rate, decay)
        self._moments = {id(tensor): [0, 0.0, 0.0] for tensor in tensors}

    def _direction(self, tensor: Any) -> Any:
        moments = self._moments[id(tensor)]
        step, first, second = moments
        step, first, second = step + 1, 0.9 * first + 0.1 * tensor.grad, 0.999 * second + 0.001 * tensor.grad**2
        moments[:] = step, first, second
        correction = (1 - 0.999**step) ** 0.5 / (1 - 0.9**step)
        return correction * first / (second**0.5 + 1e-6)
