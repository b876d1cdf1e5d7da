"""The provider ``openai``: labels from a vision model behind the OpenAI API, each image asked about once."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import replace
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from agents.core.label_matching import LabelMatcher
from agents.core.labels import Answer, UserLabels, settle
from agents.labeller.api import LabelApi, label_api
from agents.labeller.cache import AnswerCache, open_cache
from agents.labeller.costs import Estimate, cost_of, estimate, price_of
from agents.labeller.errors import CostLimitError
from agents.labeller.prompt import Prompt
from agents.labeller.providers import LoadImages, image_digest, together
from agents.labeller.settings import LabellerSettings
from bus.spec import LabellingSpec, UserShard

Images = Sequence[NDArray[np.uint8]] | NDArray[np.uint8]
Tokens = tuple[int, int]
log = logging.getLogger(__name__)


class OpenAIProvider:
    """Asks ``images_per_request`` images at a time and keeps every answer.

    A reply that is refused or cannot be read is asked again in halves, so that one image does not spoil the others.
    """

    name = "openai"

    def __init__(
        self,
        api: LabelApi,
        cache: AnswerCache,
        prompt: Prompt,
        spec: LabellingSpec,
        settings: LabellerSettings,
        load: LoadImages,
    ) -> None:
        self.model: str | None = spec.model
        self.prompt_version: str | None = prompt.version
        self.users_at_once = spec.concurrency
        self._api, self._cache, self._prompt, self._spec, self._load = api, cache, prompt, spec, load
        self._attempts = settings.attempts
        self._max_cost = settings.max_cost
        self._matcher = LabelMatcher(prompt.classes, threshold=settings.match_threshold)
        self._answers: dict[str, asyncio.Future[Answer]] = {}
        self._spent = 0.0

    async def label(self, user: UserShard) -> UserLabels:
        """The user's labels."""
        return settle(await self.answers(await self._load(user.shard)), self._matcher)

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

    async def check_cost(self, users: Sequence[UserShard]) -> None:
        """Refuses when labelling these users may cost more than the limit; does nothing without one.

        Raises:
            CostLimitError: it may, or the model's price is unknown.
        """
        if self._max_cost is None:
            return
        total = Estimate(0, 0, 0, 0, 0.0)
        seen: set[str] = set()
        for user in users:
            images = await self._load(user.shard)
            total += self.estimate(images, seen)
        if total.cost is None:
            raise CostLimitError(f"nobody knows what {self.model} costs", hint="unset FEDBUS_LABELLER_MAX_COST")
        if total.cost > self._max_cost:
            raise CostLimitError(
                f"{total.images} images may cost ${total.cost:.2f}, the limit is ${self._max_cost:.2f}",
                hint="raise FEDBUS_LABELLER_MAX_COST, use low detail or more images per request",
            )

    def estimate(self, images: Images, seen: set[str]) -> Estimate:
        """What asking about these images takes, without those in the cache or in ``seen``, to which they are added."""
        digests = {image_digest(image) for image in images} - seen
        seen |= digests
        count = len(digests) - len(self._cache.find(digests))
        return self._estimate(count, images[0])

    def _estimate(self, count: int, image: NDArray[np.uint8]) -> Estimate:
        return estimate(
            count,
            height=image.shape[0],
            width=image.shape[1],
            prompt=self._prompt,
            model=self._spec.model,
            images_per_request=self._spec.images_per_request,
        )

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
        elif reply.failure == "failed" and attempt < self._attempts:
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
        cost = self._estimate(len(images), images[0]).cost
        if self._max_cost is not None and self._spent + (cost or 0.0) > self._max_cost:
            raise CostLimitError(
                f"${self._spent:.2f} are spent, the limit is ${self._max_cost:.2f}",
                hint="raise FEDBUS_LABELLER_MAX_COST; the answers so far are kept",
            )


@contextlib.asynccontextmanager
async def openai_provider(
    classes: Sequence[str], spec: LabellingSpec, settings: LabellerSettings, load: LoadImages
) -> AsyncIterator[OpenAIProvider]:
    """The provider for one run; its connections and its cache are closed at the end.

    Raises:
        LabellingError: there is no API key or the cache cannot be used.
    """
    prompt = Prompt(tuple(classes), spec.detail)
    if settings.max_cost is not None and price_of(spec.model) is None:
        raise CostLimitError(f"nobody knows what {spec.model} costs", hint="unset FEDBUS_LABELLER_MAX_COST")
    async with label_api(settings, model=spec.model, prompt=prompt, concurrency=spec.concurrency) as api:
        with open_cache(settings.cache, model=spec.model, prompt=prompt.version) as cache:
            yield OpenAIProvider(api, cache, prompt, spec, settings, load)
            log.info("%d requests to %s", api.requests, spec.model)
