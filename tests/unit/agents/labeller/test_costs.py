from __future__ import annotations

import pytest

from agents.labeller.costs import NOTHING, PRICES, cost_of, estimate, image_tokens, price_of
from agents.labeller.prompt import Prompt

GPT_4O = PRICES["gpt-4o"]


@pytest.mark.parametrize(
    ("height", "width", "tokens"),
    [
        (28, 28, 85 + 170),
        (512, 512, 85 + 170),
        (513, 512, 85 + 2 * 170),
        (1024, 1024, 85 + 4 * 170),
        (2048, 4096, 85 + 6 * 170),
        (4096, 8192, 85 + 6 * 170),
    ],
)
def test_high_detail_counts_tiles_of_the_shrunk_image(height: int, width: int, tokens: int):
    assert image_tokens(height, width, "high", GPT_4O) == tokens


def test_low_detail_costs_the_same_whatever_the_size():
    assert image_tokens(28, 28, "low", GPT_4O) == image_tokens(4000, 3000, "low", GPT_4O) == 85


def test_dated_models_have_the_price_of_their_family_and_others_none():
    assert price_of("gpt-4o-2024-08-06") == GPT_4O
    assert price_of("gpt-4o-mini-2024-07-18") == PRICES["gpt-4o-mini"]
    assert price_of("gpt-4o-2024-05-13") != GPT_4O
    assert price_of("some-local-model") is None
    assert cost_of("gpt-4o", 1_000_000, 100_000) == pytest.approx(3.5)


def test_an_estimate_is_an_upper_one_of_its_parts():
    prompt = Prompt(("cat", "dog"))
    total = estimate(11, height=28, width=28, prompt=prompt, model="gpt-4o", images_per_request=5)
    assert (total.images, total.requests) == (11, 3)
    text = 3 * (len(prompt.system) + len(prompt.schema_text(5)))
    assert total.prompt_tokens > 11 * 85 + text / 4
    assert total.completion_tokens > 11 * len('"image_1":"I don\'t know",') / 4
    assert total.cost == cost_of("gpt-4o", total.prompt_tokens, total.completion_tokens)


def test_larger_requests_repeat_the_prompt_less_often():
    prompt = Prompt(tuple(f"class {index}" for index in range(1000)))
    costs = [
        estimate(100, height=224, width=224, prompt=prompt, model="gpt-4o", images_per_request=k).cost
        for k in (1, 5, 20)
    ]
    assert costs[0] > costs[1] > costs[2] > 0


def test_nothing_to_ask_costs_nothing():
    prompt = Prompt(("cat", "dog"))
    none = estimate(0, height=28, width=28, prompt=prompt, model="gpt-4o", images_per_request=5)
    assert none == NOTHING
    unknown = estimate(1, height=28, width=28, prompt=prompt, model="other", images_per_request=5)
    assert (NOTHING + unknown).cost is None


def test_the_prompt_version_changes_with_classes_and_detail_only():
    version = Prompt(("cat", "dog")).version
    assert version == Prompt(("cat", "dog")).version
    assert len({version, Prompt(("cat", "dogs")).version, Prompt(("cat", "dog"), "high").version}) == 3
    assert len(version) <= 64
