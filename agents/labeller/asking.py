"""Asks a model behind the OpenAI API about images: each one once, within a limit of money, every answer kept."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import replace
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from agents.core.labels.labels import Answer
from agents.core.labels.sources import image_digest
from agents.labeller.api import LabelApi, label_api
from agents.labeller.cache import AnswerCache, open_cache
from agents.labeller.costs import Estimate, cost_of, estimate
from agents.labeller.errors import CostLimitError
from agents.labeller.prompt import Prompt
from agents.labeller.settings import LabellerSettings
from agents.runtime.tasks import together
from agents.words.run_config import LabellingSpec

Images = Sequence[NDArray[np.uint8]] | NDArray[np.uint8]
Tokens = tuple[int, int]
log = logging.getLogger(__name__)


class ImageAsker:
    """Asks ``images_per_request`` images at a time.

    A reply that is refused or cannot be read is asked again in halves, so that one image does not spoil the others.
    """

    def __init__(
        self, api: LabelApi, cache: AnswerCache, prompt: Prompt, spec: LabellingSpec, settings: LabellerSettings
    ) -> None:
        self.prompt = prompt
        self._api, self._cache, self._spec, self._settings = api, cache, spec, settings
        self._answers: dict[str, asyncio.Future[Answer]] = {}
        self._spent = 0.0

    def estimate(self, images: Images, seen: set[str]) -> Estimate:
        """What asking about these images takes; see ``estimate_new``."""
        return estimate_new(images, seen, self._cache, self.prompt, self._spec)

    async def answers(self, images: Images) -> list[Answer]:
        """The model's answer about each image, uint8 [height, width, channels]; equal images are asked about once.

        Raises:
            LabellingError: the API refuses, or the money is spent.
            ApiUnavailableError: the API does not answer.
        """
        digests = [image_digest(image) for image in images]
        new = {digest: image for digest, image in zip(digests, images, strict=True) if digest not in self._answers}
        known = self._cache.find(new)
        for digest in new:
            self._answers[digest] = asyncio.get_running_loop().create_future()
            if digest in known:
                self._answers[digest].set_result(known[digest])
        missing = iter((digest, image) for digest, image in new.items() if digest not in known)
        batches = iter(lambda: dict(islice(missing, self._spec.images_per_request)), {})
        try:
            await together(self._ask(batch) for batch in batches)
        except BaseException:
            # Whoever waits for these answers belongs to the same labelling, which ends now.
            for digest in new:
                self._answers[digest].cancel()
            raise
        return [await asyncio.shield(self._answers[digest]) for digest in digests]

    async def _ask(self, batch: dict[str, NDArray[np.uint8]], *, attempt: int = 1, spent: Tokens = (0, 0)) -> None:
        """Gets, keeps and announces the answers about some images; ``spent`` went into earlier tries."""
        images = list(batch.values())
        self._check_spending(images)
        reply = await self._api.ask(images)
        self._spent += cost_of(self._spec.model, reply.prompt_tokens, reply.completion_tokens) or 0.0
        spent = (spent[0] + reply.prompt_tokens, spent[1] + reply.completion_tokens)
        if reply.answers is None and len(batch) > 1:
            items = iter(batch.items())
            await self._ask(dict(islice(items, len(batch) // 2)), spent=spent)
            await self._ask(dict(items))
        elif reply.failure == "failed" and attempt < self._settings.attempts:
            await self._ask(batch, attempt=attempt + 1, spent=spent)
        else:
            texts = reply.answers or [None] * len(batch)
            self._announce(batch, [Answer(text, reply.failure) for text in texts], spent)

    def _announce(self, batch: Iterable[str], answers: Sequence[Answer], spent: Tokens) -> None:
        """Keeps the answers, with the tokens spread over them so that their sums are exact, and hands them on."""
        count = len(answers)
        found = {
            digest: replace(
                one, prompt_tokens=(spent[0] + index) // count, completion_tokens=(spent[1] + index) // count
            )
            for index, (digest, one) in enumerate(zip(batch, answers, strict=True))
        }
        self._cache.keep({digest: one for digest, one in found.items() if one.failure != "failed"})
        for digest, answer in found.items():
            self._answers[digest].set_result(answer)

    def _check_spending(self, images: Images) -> None:
        cost = _estimate(len(images), images[0], self.prompt, self._spec).cost or 0.0
        limit = self._settings.max_cost
        if limit is not None and self._spent + cost > limit:
            raise CostLimitError(
                f"${self._spent:.2f} are spent, the limit is ${limit:.2f}",
                hint="raise the limit (FEDBUS_LABELLER_MAX_COST, --max-cost); the answers so far are kept",
            )


def estimate_new(images: Images, seen: set[str], cache: AnswerCache, prompt: Prompt, spec: LabellingSpec) -> Estimate:
    """What asking about images of one size takes, without those in the cache or in ``seen``, which gets all of them."""
    new = {image_digest(image) for image in images} - seen
    seen |= new
    return _estimate(len(new) - len(cache.find(new)), images[0], prompt, spec)


def _estimate(count: int, image: NDArray[np.uint8], prompt: Prompt, spec: LabellingSpec) -> Estimate:
    height, width = image.shape[:2]
    per_request = spec.images_per_request
    return estimate(count, height=height, width=width, prompt=prompt, model=spec.model, images_per_request=per_request)


def check_limit(total: Estimate, max_cost: float | None, model: str) -> None:
    """Refuses an estimate above the limit, if there is one.

    Raises:
        CostLimitError: it is above, or the model's price is unknown.
    """
    if max_cost is None:
        return
    if total.cost is None:
        raise CostLimitError(f"nobody knows what {model} costs", hint="use a model with a known price, or no limit")
    if total.cost > max_cost:
        raise CostLimitError(
            f"{total.images} images may cost ${total.cost:.2f}, the limit is ${max_cost:.2f}",
            hint="raise the limit (FEDBUS_LABELLER_MAX_COST, --max-cost), use low detail or more images per request",
        )


@contextlib.asynccontextmanager
async def image_asker(
    classes: Sequence[str], spec: LabellingSpec, settings: LabellerSettings
) -> AsyncIterator[ImageAsker]:
    """An asker for these classes; its connections and its cache are closed at the end.

    Raises:
        LabellingError: there is no API key or the cache cannot be used.
    """
    prompt = Prompt(tuple(classes), spec.detail)
    async with label_api(settings, model=spec.model, prompt=prompt, concurrency=spec.concurrency) as api:
        with open_cache(settings.cache, model=spec.model, prompt=prompt.version) as cache:
            yield ImageAsker(api, cache, prompt, spec, settings)
            log.info("%d requests to %s", api.requests, spec.model)
