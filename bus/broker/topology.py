"""The streams and buckets of the bus; nothing else configures any."""

from __future__ import annotations

from dataclasses import replace

from nats.js import JetStreamContext
from nats.js.api import DiscardPolicy, StorageType, StoreCompression, StreamConfig
from nats.js.errors import NotFoundError

from bus.words.subjects import ALL_DELETIONS, ALL_TOKENS, DEAD_LETTERS, EVENT_STREAM, EVENTS

DLQ_STREAM = "DLQ"
TOKEN_STREAM = "TOKENS"
DELETION_STREAM = "DELETIONS"
BUCKET = "objects"
OBJECT_STREAM = f"OBJ_{BUCKET}"
MAX_EVENT_BYTES = 64 * 1024
MAX_LETTERS, MAX_LETTER_BYTES = 6_000, 64 << 20
NEWEST_LETTERS = 128
"""Of one sender whose malformed messages came like a flood; of the broker's advisories on one consumer."""
MAX_DELIVERIES_ADVISORIES = f"$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.{EVENT_STREAM}.*"

STREAMS: tuple[StreamConfig, ...] = (
    StreamConfig(
        name=EVENT_STREAM,
        description="every durable event of every run",
        subjects=[EVENTS],
        storage=StorageType.FILE,
        compression=StoreCompression.S2,
        allow_direct=True,
        deny_delete=True,
        deny_purge=True,
        max_msg_size=MAX_EVENT_BYTES,
        duplicate_window=600,
    ),
    StreamConfig(
        name=DLQ_STREAM,
        description="messages that nobody could understand or handle",
        subjects=[DEAD_LETTERS, MAX_DELIVERIES_ADVISORIES],
        storage=StorageType.FILE,
        # The oldest goes first, so that nothing is ever left without what was said of it later.
        discard=DiscardPolicy.OLD,
        max_msgs=MAX_LETTERS,
        max_bytes=MAX_LETTER_BYTES,
        max_msgs_per_subject=NEWEST_LETTERS,
        allow_direct=True,
    ),
    StreamConfig(
        name=OBJECT_STREAM,
        description="immutable objects named by their SHA-256",
        subjects=[f"$O.{BUCKET}.C.>", f"$O.{BUCKET}.M.>"],
        storage=StorageType.FILE,
        discard=DiscardPolicy.NEW,
        allow_direct=True,
    ),
    StreamConfig(
        name=TOKEN_STREAM,
        description="the newest record of each join token, without its secret",
        subjects=[ALL_TOKENS],
        storage=StorageType.FILE,
        allow_direct=True,
        max_msgs_per_subject=1,
    ),
    StreamConfig(
        name=DELETION_STREAM,
        description="what was deleted from the object store, and why",
        subjects=[ALL_DELETIONS],
        storage=StorageType.FILE,
        compression=StoreCompression.S2,
        allow_direct=True,
        deny_delete=True,
        deny_purge=True,
    ),
)


async def ensure_topology(js: JetStreamContext, *, replicas: int | None = None) -> None:
    """Creates the streams and buckets that are missing and updates those that differ; safe to run at any time.

    Args:
        replicas: how many nodes of the cluster keep each stream; none leaves that as it is.

    Raises:
        nats.js.errors.APIError: the broker refuses a setting.
    """
    for stream in STREAMS:
        wanted = replace(stream, num_replicas=replicas)
        assert wanted.name is not None
        try:
            found = (await js.stream_info(wanted.name)).config
        except NotFoundError:
            await js.add_stream(wanted)
            continue
        # A rollup deletes what was on its subject before, for whoever may publish there: no stream takes any.
        # What the table above leaves open is the broker's or its operator's business: limits, placement.
        stated = {name: value for name, value in vars(wanted).items() if value != getattr(_UNSET, name)}
        merged = replace(found, **stated, allow_rollup_hdrs=False)
        if merged != found:
            await js.update_stream(merged)


_UNSET = StreamConfig()
