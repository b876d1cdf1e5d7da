"""What labelling by a paid API costs: tokens and US dollars, estimated before anything is sent."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from agents.labeller.prompt import Prompt

Detail = Literal["low", "high"]
CHARACTERS_PER_TOKEN = 3.0
"""English has about four; fewer make the estimate an upper one."""
_MESSAGE_TOKENS = 12
_MILLION = 1_000_000


@dataclass(frozen=True)
class Price:
    """US dollars per million tokens, and the tokens of an image: a base, and per 512-pixel tile at high detail."""

    prompt: float
    completion: float
    image_base: int
    image_tile: int


PRICES: dict[str, Price] = {
    "gpt-4o-2024-05-13": Price(5.00, 15.00, 85, 170),
    "gpt-4o-mini": Price(0.15, 0.60, 2833, 5667),
    "gpt-4o": Price(2.50, 10.00, 85, 170),
}
"""The provider's list prices, by model; the first name that a model begins with counts. Prices change: look them up."""


@dataclass(frozen=True)
class Estimate:
    """What labelling some images will take; ``cost`` is in US dollars, or none when the model's price is unknown."""

    images: int
    requests: int
    prompt_tokens: int
    completion_tokens: int
    cost: float | None

    def __add__(self, other: Estimate) -> Estimate:
        return Estimate(
            self.images + other.images,
            self.requests + other.requests,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            None if self.cost is None or other.cost is None else self.cost + other.cost,
        )


NOTHING = Estimate(0, 0, 0, 0, 0.0)


def price_of(model: str) -> Price | None:
    """The price of a model, or nothing when the table does not have it."""
    return next((price for name, price in PRICES.items() if model.startswith(name)), None)


def cost_of(model: str, prompt_tokens: int, completion_tokens: int) -> float | None:
    """US dollars for so many tokens, or nothing when the model's price is unknown."""
    price = price_of(model)
    if price is None:
        return None
    return (prompt_tokens * price.prompt + completion_tokens * price.completion) / _MILLION


def image_tokens(height: int, width: int, detail: Detail, price: Price) -> int:
    """Prompt tokens of one image of so many pixels.

    At low detail the base alone. At high detail the image is shrunk to fit 2048 x 2048, then until its shorter side is
    at most 768, and each 512-pixel tile that it then covers counts.
    """
    if detail == "low":
        return price.image_base
    scale = min(1.0, 2048 / max(height, width))
    scale *= min(1.0, 768 / (min(height, width) * scale))
    tiles = math.ceil(height * scale / 512) * math.ceil(width * scale / 512)
    return price.image_base + price.image_tile * tiles


def estimate(images: int, *, height: int, width: int, prompt: Prompt, model: str, images_per_request: int) -> Estimate:
    """What it takes to ask ``model`` about so many images of one size, ``images_per_request`` at a time.

    A model without a known price counts image tokens as gpt-4o does.
    """
    requests = math.ceil(images / images_per_request)
    price = price_of(model) or PRICES["gpt-4o"]
    text = prompt.system + prompt.schema_text(min(images, images_per_request)) if images else ""
    per_image = image_tokens(height, width, prompt.detail, price) + _MESSAGE_TOKENS
    prompt_tokens = requests * (math.ceil(len(text) / CHARACTERS_PER_TOKEN) + 2 * _MESSAGE_TOKENS) + images * per_image
    completion_tokens = images * prompt.answer_tokens + requests * _MESSAGE_TOKENS
    return Estimate(
        images, requests, prompt_tokens, completion_tokens, cost_of(model, prompt_tokens, completion_tokens)
    )
