"""Estimates of the memory that a Vision Transformer takes, from its configuration."""

from __future__ import annotations

from typing import Any

from artifacts.manifest import MemoryFacts
from artifacts.modes import TrainMode

_FLOAT = 4


def estimate_memory(config: Any, mode: TrainMode, *, tokens: int, parameters: int, trainable: int) -> MemoryFacts:
    """Return the estimate for a ViT configuration; `tokens` are the patches of an image and the class token,
    parameters numbers of float32 values.

    A forward pass holds one block's results at a time, a training step those of every block from the first trained
    one on.
    """
    row = tokens * config.hidden_size
    scores = config.num_attention_heads * tokens * tokens
    wide = tokens * config.intermediate_size
    # In attention: residual, q, k, v and two copies of the scores; in the MLP: residual, input, both sides of Gelu.
    forward = max(5 * row + 2 * scores, 3 * row + 2 * wide)
    # Kept for the gradient: two norms with their inputs, q, k, v, context, projections, scores, both sides of Gelu.
    block = 10 * row + 2 * scores + 2 * wide
    blocks = {"last": mode.size, "lora": config.num_hidden_layers, "full": config.num_hidden_layers}.get(mode.kind, 0)
    return MemoryFacts(
        parameters=_FLOAT * (parameters + 3 * trainable),
        forward_per_image=_FLOAT * forward,
        step_per_image=_FLOAT * (forward + blocks * block),
    )
