"""Asks a model behind the OpenAI API about images: each one once, within a limit of money, every answer kept."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from dataclasses import replace
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from agents.core.labels.labels import Answer
from agents.core.labels.sources import image_digest
from agents.labeller.api import LabelApi, Reply, label_api
from agents.labeller.cache import AnswerCache, open_cache
from agents.labeller.costs import Estimate, cost_of, estimate
from agents.labeller.errors import CostLimitError, UnreadableRepliesError
from agents.labeller.prompt import Prompt
from agents.labeller.settings import LabellerSettings
from agents.runtime.tasks import together
from agents.words.run_config import LabellingSpec
from bus.errors import FedbusError

Images = Sequence[NDArray[np.uint8]] | NDArray[np.uint8]
Tokens = tuple[int, int]
_LOOK_AGAIN_S = 0.1
_FIRST_REPLIES = 4
"""So many that cannot be read, with none that can, are no accident."""
log = logging.getLogger(__name__)


class ImageAsker:
    """Asks ``images_per_request`` images at a time.

    A reply that is refused or cannot be read is asked again in halves, so that one image does not spoil the others.
    When none can be read from the beginning, and no one image was in all of them, it is not the images: asking ends.
    """

    def __init__(
        self, api: LabelApi, cache: AnswerCache, prompt: Prompt, spec: LabellingSpec, settings: LabellerSettings
    ) -> None:
        self.prompt = prompt
        self._api, self._cache, self._spec, self._settings = api, cache, spec, settings
        self._answers: dict[str, asyncio.Future[Answer]] = {}
        self._running: set[asyncio.Task[None]] = set()
        self._ended: FedbusError | None = None
        self._spent = 0.0
        self._readable = False
        self._suspects: set[str] | None = None
        self._unreadable = 0

    def estimate(self, images: Images, seen: set[str]) -> Estimate:
        """What asking about these images takes; see ``estimate_new``."""
        return estimate_new(images, seen, self._cache, self.prompt, self._spec)

    async def answers(self, images: Images) -> list[Answer]:
        """The model's answer about each image, uint8 [height, width, channels]; equal images are asked about once.

        Raises:
            LabellingError: the API refuses, nothing that it says can be read, or the money is spent.
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
            await together(self._asked(batch) for batch in batches)
        except BaseException:
            # Whoever waits for these answers belongs to the same labelling, which ends now.
            for digest in new:
                self._answers[digest].cancel()
            raise
        return [await asyncio.shield(self._answers[digest]) for digest in digests]

    async def close(self, *, finish: bool) -> None:
        """Ends what still runs; ``finish`` waits for the replies to requests that are out, as they have to be paid."""
        while finish and self._running and self._api.under_way:
            await asyncio.wait(self._running, timeout=_LOOK_AGAIN_S, return_when=asyncio.FIRST_COMPLETED)
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def _asked(self, batch: dict[str, NDArray[np.uint8]]) -> None:
        """Asks about some images in a task of its own, which outlives another's failure: see ``close``."""
        task = asyncio.create_task(self._ask(batch))
        self._running.add(task)
        task.add_done_callback(self._done)
        await asyncio.shield(task)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled() and isinstance(error := task.exception(), FedbusError):
            self._ended = self._ended or error
            self._api.stop()

    async def _ask(self, batch: dict[str, NDArray[np.uint8]], *, attempt: int = 1, spent: Tokens = (0, 0)) -> None:
        """Gets, keeps and announces the answers about some images; ``spent`` went into earlier tries."""
        images = list(batch.values())
        expected = _estimate(len(images), images[0], self.prompt, self._spec).cost or 0.0
        reply = await self._api.ask(images, admit=lambda: self._spend(expected))
        if reply.prompt_tokens or reply.failure == "refused":
            # A reply that does not say its tokens costs what was expected.
            self._spent += (cost_of(self._spec.model, reply.prompt_tokens, reply.completion_tokens) or 0.0) - expected
        self._check_readable(reply, batch.keys())
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
            # Nobody waits any more when the labelling has failed elsewhere.
            if not self._answers[digest].done():
                self._answers[digest].set_result(answer)

    def _check_readable(self, reply: Reply, images: Collection[str]) -> None:
        """Ends the asking as soon as what cannot be read is no matter of one image, nor of too many at a time."""
        self._readable = self._readable or not reply.problem
        if self._readable or (len(images) > 1 and reply.fewer_may_help):
            return
        self._unreadable += 1
        self._suspects = set(images) if self._suspects is None else self._suspects & set(images)
        if self._unreadable >= _FIRST_REPLIES and not self._suspects:
            raise UnreadableRepliesError(
                f"the first {self._unreadable} replies of {self._spec.model} cannot be read: {reply.problem}",
                hint="use a model that answers in JSON, or ask about fewer images at a time",
            )

    def _spend(self, expected: float) -> None:
        """Sets the money for a request aside, as long as there is some and nothing has failed."""
        if self._ended is not None:
            raise self._ended
        limit = self._settings.max_cost
        if limit is not None and self._spent + expected > limit:
            raise CostLimitError(
                f"${self._spent:.2f} are spent, the limit is ${limit:.2f}",
                hint="raise the limit (FEDBUS_LABELLER_MAX_COST, --max-cost); the answers so far are kept",
            )
        self._spent += expected


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
            asker = ImageAsker(api, cache, prompt, spec, settings)
            finish = True
            try:
                yield asker
            except BaseException as error:
                finish = isinstance(error, FedbusError)
                raise
            finally:
                await asker.close(finish=finish)
            log.info("%d requests to %s", api.requests, spec.model)
