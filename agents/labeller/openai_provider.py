"""The provider ``openai``: a run's labels from a vision model behind the OpenAI API."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence

from agents.core.labels.labels import UserLabels, settle
from agents.core.labels.matching import LabelMatcher
from agents.labeller.asking import ImageAsker, check_limit, image_asker
from agents.labeller.costs import NOTHING
from agents.labeller.providers import LoadImages
from agents.labeller.settings import LabellerSettings
from agents.words.run_config import LabellingSpec, UserShard


class OpenAIProvider:
    """Asks about the images of each user's shard and matches the answers to the classes."""

    def __init__(self, asker: ImageAsker, spec: LabellingSpec, settings: LabellerSettings, load: LoadImages) -> None:
        self._model = spec.model
        self.prompt_version: str | None = asker.prompt.version
        self.users_at_once = spec.concurrency
        self._asker, self._load, self._max_cost = asker, load, settings.max_cost
        self._matcher = LabelMatcher(asker.prompt.classes, threshold=settings.match_threshold)

    async def label(self, user: UserShard) -> UserLabels:
        """The user's labels."""
        return settle(await self._asker.answers(await self._load(user.shard)), self._matcher)

    async def check_cost(self, users: Sequence[UserShard]) -> None:
        """Refuses when labelling these users may cost more than the limit; without one it reads nothing.

        Raises:
            CostLimitError: it may, or the model's price is unknown.
        """
        if self._max_cost is None:
            return
        total, seen = NOTHING, set[str]()
        for user in users:
            total += self._asker.estimate(await self._load(user.shard), seen)
        check_limit(total, self._max_cost, self._model)


@contextlib.asynccontextmanager
async def openai_provider(
    classes: Sequence[str], spec: LabellingSpec, settings: LabellerSettings, load: LoadImages
) -> AsyncIterator[OpenAIProvider]:
    """The provider for one run; its connections and its cache are closed at the end.

    Raises:
        LabellingError: there is no API key or the cache cannot be used.
    """
    async with image_asker(classes, spec, settings) as asker:
        yield OpenAIProvider(asker, spec, settings, load)
