"""Fetches what the fold over the runs has to know of the object store, and recalls the runs that are over."""

from __future__ import annotations

import asyncio
import logging

from agents.core.exchange.runs import Runs
from agents.runtime.past import starts_and_ends
from agents.words.events import RunStarted
from agents.words.run_config import RunDataset
from bus.client import Bus
from bus.errors import FedbusError
from bus.words.envelope import Stored
from bus.words.payload import Payload
from bus.words.references import Reference, references

log = logging.getLogger(__name__)


class RunDocuments:
    """What events lead to, for ``runs``."""

    def __init__(self, bus: Bus, runs: Runs) -> None:
        self._bus = bus
        self._runs = runs
        self._followed: set[str] = set()

    async def of(self, data: Payload) -> RunDataset | None:
        """The dataset that a ``run.started`` names, if it can be read.

        While the past is being recalled, ``runs`` is told of all that the event leads to: its run may need that.
        """
        dataset = await self._dataset(data) if isinstance(data, RunStarted) else None
        if not self._runs.knows_all:
            if isinstance(data, RunStarted) and dataset is not None:
                self._followed.add(data.dataset.sha256)
                self._need([*references(dataset)])
            await self._follow(data)
        return dataset

    async def _dataset(self, started: RunStarted) -> RunDataset | None:
        try:
            return RunDataset.model_validate_json(await self._bus.objects.get(started.dataset))
        except (FedbusError, ValueError) as error:
            log.warning("the dataset cannot be read, so clients may not either: %s", error, extra={"run": started.run})
            return None

    async def _follow(self, data: Payload) -> None:
        waiting = [*references(data)]
        while waiting:
            one = waiting.pop()
            if one.document is None or one.ref.sha256 in self._followed:
                continue
            self._followed.add(one.ref.sha256)
            try:
                document = one.document.model_validate_json(await self._bus.objects.get(one.ref))
            except (FedbusError, ValueError):
                # Whoever needs what it names hears of it; until all is recalled that is not served.
                continue
            found = [*references(document)]
            self._need(found)
            waiting += found

    def _need(self, found: list[Reference]) -> None:
        self._runs.need(one.ref.sha256 for one in found)

    async def recall(self, after: int) -> None:
        """Takes in the runs that were over at ``after``: they are listed, and what was secret in them still is."""
        known: dict[str, RunDataset] = {}
        async for stored in starts_and_ends(self._bus):
            if stored.sequence > after:
                break
            self._runs.recall(stored, await self._old_dataset(stored, known))
            # There may be many, and whoever reads them has others to serve.
            await asyncio.sleep(0)
        self._runs.recalled()
        self._followed.clear()

    async def _old_dataset(self, stored: Stored, known: dict[str, RunDataset]) -> RunDataset | None:
        """Many runs share a dataset, and of one that is over no user's name is needed."""
        data = stored.event.data
        if not isinstance(data, RunStarted):
            return None
        if data.dataset.sha256 not in known and (dataset := await self._dataset(data)) is not None:
            known[data.dataset.sha256] = dataset.model_copy(update={"users": ()})
        return known.get(data.dataset.sha256)
