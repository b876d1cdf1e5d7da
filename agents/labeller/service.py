"""The labeller agent: on ``run.started`` it publishes ``images.labelled`` for every user of the run, once."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from agents.core.labels.errors import LabellingError, TruthMissingError
from agents.core.labels.labels import UserLabels, fitting, images_labelled
from agents.core.labels.matching import LabelMatcher
from agents.core.labels.sources import SimulatedLabeller
from agents.labeller.providers import Provider, RecordedProvider, TruthProvider
from agents.labeller.settings import LabellerSettings
from agents.runtime.tasks import together, until
from agents.words.events import ImagesLabelled, RunFinished, RunStarted
from agents.words.run_config import RunDataset, UserShard
from bus.client import Bus
from bus.errors import ConflictingEventError, ObjectCorruptError, ObjectMissingError
from bus.process.crash_points import crash_point
from bus.words.envelope import Event, Stored
from bus.words.problems import what_is_wrong
from bus.words.subjects import events_of_type
from bus.words.values import MAX_IMAGES_PER_USER, Ref
from bus.work.worker import work
from data.errors import ShardError
from data.shards import decode_shard

RUNS_AT_ONCE = 4
ACK_WAIT_S = 10.0
"""How long the runs of a labeller that died wait for another one."""
log = logging.getLogger(__name__)


class Labeller:
    """The shell around the providers: reads the run's dataset and says each user's labels."""

    def __init__(self, bus: Bus, settings: LabellerSettings) -> None:
        self._bus = bus
        self._settings = settings

    async def handle(self, stored: Stored) -> None:
        """Labels the users of the run that this ``run.started`` opens and that have no labels yet.

        A run that cannot be labelled ends as failed, with a reason that says what to change.
        """
        started = stored.event.data
        assert isinstance(started, RunStarted)
        crash_point("labeller.received")
        if await self._is_over(started.run):
            return
        done = await self._labelled_users(started.run)
        if len(done) >= started.users:
            return
        try:
            await self._label(started, done, stored.event)
        except (LabellingError, ShardError, ObjectMissingError, ObjectCorruptError) as error:
            log.error("%s [%s] %s", error.message, error.code, error.hint, extra={"run": started.run})
            reason = f"labelling: {error.message}" + (f" ({error.hint})" if error.hint else "")
            # Somebody may have ended it meanwhile, and the first end counts.
            with contextlib.suppress(ConflictingEventError):
                await self._bus.publish(
                    RunFinished(run=started.run, status="failed", reason=reason[:500], rounds=0), cause=stored.event
                )

    async def _is_over(self, run: str) -> bool:
        return await self._bus.find(events_of_type("run.finished", run)) is not None

    async def _label(self, started: RunStarted, done: set[str], cause: Event) -> None:
        try:
            dataset = RunDataset.model_validate_json(await self._bus.objects.get(started.dataset))
        except ObjectMissingError as error:
            raise LabellingError(f"the run's dataset: {error.message}") from None
        except ValidationError as error:
            raise LabellingError(f"the run's dataset object is malformed: {what_is_wrong(error)}") from None
        waiting = [user for user in dataset.users if user.user not in done]
        async with self._provider(started, dataset) as provider:
            await provider.check_cost(waiting)
            for start in range(0, len(waiting), provider.users_at_once):
                if await self._is_over(started.run):
                    return
                users = waiting[start : start + provider.users_at_once]
                await self._say(started, provider, users, await together(map(provider.label, users)), cause)

    @contextlib.asynccontextmanager
    async def _provider(self, started: RunStarted, dataset: RunDataset) -> AsyncIterator[Provider]:
        spec = started.config.labelling
        if spec.provider == "truth":
            if dataset.truth is None:
                raise TruthMissingError("the run's dataset has no truth", hint="choose another labeller for it")
            truth, seed = await self._bus.objects.get(dataset.truth), started.config.seed
            classes = len(dataset.classes)
            yield TruthProvider(SimulatedLabeller(truth, classes=classes, error_rate=spec.error_rate, seed=seed))
        elif spec.provider == "recorded":
            matcher = LabelMatcher(dataset.classes, threshold=self._settings.match_threshold)
            yield RecordedProvider(self._settings.labels_file, self._images, matcher)
        else:
            # Here, because the client takes longer to import than the other providers to label a run.
            from agents.labeller.openai_provider import openai_provider

            async with openai_provider(dataset.classes, spec, self._settings, self._images) as provider:
                yield provider

    async def _images(self, shard: Ref) -> NDArray[np.uint8]:
        images = decode_shard(await self._bus.objects.get(shard))[0]
        if len(images) > MAX_IMAGES_PER_USER:
            raise LabellingError(f"shard {shard.sha256} has {len(images)} images, more than {MAX_IMAGES_PER_USER}")
        return images

    async def _say(
        self,
        started: RunStarted,
        provider: Provider,
        users: Sequence[UserShard],
        labels: Sequence[UserLabels],
        cause: Event,
    ) -> None:
        run = started.run
        events = [
            fitting(images_labelled(started, user, one, prompt_version=provider.prompt_version))
            for user, one in zip(users, labels, strict=True)
        ]
        crash_point("labeller.decided")
        try:
            await self._bus.publish_many(events, cause=cause)
            crash_point("labeller.published")
        except ConflictingEventError as error:
            # Another labeller was faster; the first labels of a user count.
            log.info("%s", error.message, extra={"run": run})
        dropped = sum(len(one.dropped) for one in labels)
        log.info("labelled %d users, %d images dropped", len(events), dropped, extra={"run": run})

    async def _labelled_users(self, run: str) -> set[str]:
        found = set()
        async with self._bus.follow(events_of_type("images.labelled", run), live=False) as items:
            async for item in items:
                if isinstance(item, Stored) and isinstance(item.event.data, ImagesLabelled):
                    found.add(item.event.data.user)
        return found


async def serve(bus: Bus, stop: asyncio.Event) -> None:
    """The body of the labeller agent."""
    labeller = Labeller(bus, LabellerSettings())
    # Without a last delivery: an API that is away for an hour must not leave a run without labels for ever.
    async with bus.pull(
        "labeller",
        events_of_type("run.started"),
        ack_wait_s=ACK_WAIT_S,
        max_ack_pending=RUNS_AT_ONCE,
        max_deliver=-1,
    ) as consumer:
        await until(stop, work(consumer, labeller.handle, concurrency=RUNS_AT_ONCE))
