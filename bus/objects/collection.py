"""Collects objects that nothing in the event stream leads to any more.

What may be needed is found by a conservative reading: every text in an event that looks like a SHA-256 counts as a
reference, whether this version understands the event or not, and so does every one in a JSON document that is needed
itself (datasets name images, manifests name files, specs name optimizers).

Whoever says an event puts its objects first, so an object without an event may be about to get one. Three things keep
it safe: only what is old is collected; an object that is put again becomes new; and right before each deletion the
events that came meanwhile are read, and the broker deletes only what was not touched since it was looked at.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
from collections.abc import AsyncGenerator, Iterable

from bus.broker.connection import Connection
from bus.broker.direct_get import read_stored
from bus.errors import MalformedEventError, ObjectMissingError
from bus.objects.bucket import Entry
from bus.objects.reader import ref_of
from bus.objects.store import ObjectStore
from bus.words.envelope import parse_event
from bus.words.references import references
from bus.words.subjects import EVENT_STREAM
from bus.words.values import Ref

_DIGEST = re.compile(rb"[0-9a-f]{64}")
_OWN_NAME = re.compile(r"sha256-[0-9a-f]{64}")
_REASON = "no event leads to it"
_BATCH = 256
_STALL_S = 10.0
log = logging.getLogger(__name__)


class Collector:
    """One look at the store: ``expired`` finds what may go, ``delete`` makes it go."""

    def __init__(self, connection: Connection, objects: ObjectStore) -> None:
        self._connection = connection
        self._objects = objects
        self._read = 0
        self._needed: set[str] = set()
        self._followed: set[str] = set()
        self._documents: dict[str, bool] = {}
        """Of the objects seen, by digest, whether they are JSON."""

    async def expired(self, older_than_s: float) -> list[Entry]:
        """The objects that no event leads to and that have not been put for ``older_than_s`` seconds.

        Objects with names that are not fedbus's own are never among them.

        Raises:
            ObjectCorruptError, ObjectTimeoutError: a document that is needed cannot be read, so nobody knows what else
                is.
        """
        now = await self._objects.bucket.now()
        old: list[Entry] = []
        for entry in await self._objects.bucket.entries():
            if not _OWN_NAME.fullmatch(entry.meta.name):
                continue
            ref = ref_of(entry.meta)
            self._documents[ref.sha256] = ref.media_type == "application/json"
            if (now - entry.stored_at).total_seconds() >= older_than_s:
                old.append(entry)
        await self._read_on()
        return [entry for entry in old if not self._is_needed(entry)]

    async def delete(self, entry: Entry) -> bool:
        """Deletes an expired object unless an event came to need it, or somebody put it, since it was looked at."""
        await self._read_on()
        return not self._is_needed(entry) and await self._objects.bucket.delete(entry, _REASON)

    def _is_needed(self, entry: Entry) -> bool:
        return ref_of(entry.meta).sha256 in self._needed

    async def _read_on(self) -> None:
        """Takes in the events that came since the last time, and all that they lead to."""
        stored = read_stored(self._connection, EVENT_STREAM, ">", start=self._read + 1, batch=_BATCH, stall_s=_STALL_S)
        async with contextlib.aclosing(stored) as messages:
            async for message in messages:
                await self._take(_digests(message.data), set(_documents_of(message.data)))
                self._read = message.sequence

    async def _take(self, digests: Iterable[str], documents: set[str]) -> None:
        waiting = list(digests)
        while waiting:
            digest = waiting.pop()
            known = digest in self._needed
            self._needed.add(digest)
            if digest not in self._followed and (
                digest in documents or (not known and await self._is_document(digest))
            ):
                self._followed.add(digest)
                waiting += await self._named_in(digest)

    async def _is_document(self, digest: str) -> bool:
        if digest not in self._documents:
            ref = await self._objects.info(f"sha256-{digest}")
            return ref is not None and ref.media_type == "application/json"
        return self._documents[digest]

    async def _named_in(self, digest: str) -> list[str]:
        try:
            return _digests(await self._objects.get(digest))
        except ObjectMissingError:
            # Nobody can follow its references any more; putting it again means putting those again.
            log.warning("a document that events need is not in the store: %s", digest)
            return []


async def collect(
    connection: Connection, objects: ObjectStore, older_than_s: float, *, dry_run: bool = False
) -> AsyncGenerator[Ref, None]:
    """Deletes what is expired, and says what; with ``dry_run`` it only says.

    Raises:
        ObjectCorruptError, ObjectTimeoutError: as ``Collector.expired``.
    """
    collector = Collector(connection, objects)
    for entry in await collector.expired(older_than_s):
        if dry_run or await collector.delete(entry):
            yield ref_of(entry.meta)


def _digests(data: bytes) -> list[str]:
    """Everything in a JSON text that looks like a digest, also where its characters are escaped."""
    if b"\\u" in data:
        with contextlib.suppress(ValueError, RecursionError):
            data += json.dumps(json.loads(data)).encode()
    return [one.decode() for one in _DIGEST.findall(data)]


def _documents_of(body: bytes) -> list[str]:
    """The documents that an event names by its contract, whatever type they were put with."""
    try:
        data = parse_event(body).data
    except MalformedEventError:
        return []
    return [one.ref.sha256 for one in references(data) if one.document is not None]
