"""Base training of the default task: a small ViT that has hardly seen sneakers and bags."""

from __future__ import annotations

import logging
import math
import random
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import ViTConfig, ViTForImageClassification

from artifacts.pixels import pixel_table, to_pixel_values
from data.fashion_mnist_source import CLASSES, DEFAULT_SOURCE, load_split

MEAN, STD = (0.5,), (0.5,)
RARE_CLASSES = (CLASSES.index("sneaker"), CLASSES.index("bag"))


log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BaseTraining:
    """Settings of the base training; the defaults are those of the shipped model."""

    pool: int = 14_000
    rare_images: int = 15
    epochs: int = 11
    batch: int = 64
    learning_rate: float = 2e-3
    seed: int = 0


def base_config() -> ViTConfig:
    """Return the configuration of the default model: 28x28x1, patch 7, hidden 64, 4 layers; 139,018 parameters."""
    return ViTConfig(
        image_size=28,
        num_channels=1,
        patch_size=7,
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=128,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        id2label=dict(enumerate(CLASSES)),
        label2id={name: index for index, name in enumerate(CLASSES)},
    )


def base_indices(labels: NDArray[np.int64], settings: BaseTraining) -> NDArray[np.int64]:
    """Return the training indices: the first `pool` images, of each rare class only the first `rare_images`."""
    pool = labels[: settings.pool]
    keep = np.ones(len(pool), dtype=bool)
    for label in RARE_CLASSES:
        keep[np.flatnonzero(pool == label)[settings.rare_images :]] = False
    return np.flatnonzero(keep)


def train_base(
    settings: BaseTraining,
    *,
    source: Path = DEFAULT_SOURCE,
) -> ViTForImageClassification:
    """Return the trained base model, in eval mode; about three minutes on one thread.

    The result depends on nothing but the settings, the images and the versions of torch and transformers: every
    random draw is seeded and one thread fixes the order of sums.
    """
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    random.seed(settings.seed)
    torch.manual_seed(settings.seed)
    split = load_split("train", source)
    chosen = base_indices(split.labels, settings)
    images = torch.from_numpy(to_pixel_values(split.images[chosen], pixel_table(MEAN, STD)))
    labels = torch.from_numpy(split.labels[chosen])
    model = ViTForImageClassification(base_config())
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate)
    steps = settings.epochs * math.ceil(len(labels) / settings.batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    order = torch.Generator().manual_seed(settings.seed)
    started = time.monotonic()
    for epoch in range(settings.epochs):
        total = 0.0
        for batch in torch.randperm(len(labels), generator=order).split(settings.batch):
            loss = torch.nn.functional.cross_entropy(model(pixel_values=images[batch]).logits, labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(batch)
        elapsed = time.monotonic() - started
        log.info("epoch %d/%d: loss %.4f, %.0f s", epoch + 1, settings.epochs, total / len(labels), elapsed)
    return model.eval()
