"""Gives events that a worker gave up back to it.

An event stays where it is in the stream, written once. An operator's wish to have it tried again is a message of its
own on the DLQ, ``dlq.retry.<consumer>.<sequence>``; a durable consumer on the DLQ brings it to the workers of
``<consumer>``, which read the event from the stream, handle it like any other, say ``dlq.handled.…`` and only then
acknowledge the wish. So each step is one write, and whoever dies between two of them leaves the wish to be delivered
again. The letter itself is never touched: it counts as settled once it was handled.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass

from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig, ConsumerInfo, RawStreamMsg
from nats.js.errors import NotFoundError

from bus.broker.connection import Connection
from bus.broker.direct_get import was_copied
from bus.broker.topology import DLQ_STREAM
from bus.errors import FedbusError
from bus.process.crash_points import crash_point
from bus.stream.dead_letters import DeadLetter, bury, letter_at, put_once
from bus.stream.publisher import parsed
from bus.stream.pull_reader import place_of
from bus.words.envelope import Stored
from bus.words.subjects import EVENT_STREAM, LetterSubject, letters_of, matches, parse_letter_subject
from bus.work.consumer import BACKOFF_S, Delivery, PullConsumer

MAX_RETRIES_PENDING = 16


class LetterMalformedError(FedbusError):
    """A dead letter is no event that this version understands, so nobody can handle it."""

    code = "letter_malformed"


class LetterUnclaimedError(FedbusError):
    """No worker takes a dead letter back."""

    code = "letter_unclaimed"


@dataclass(frozen=True)
class Retry:
    """What asking for another try came to: the consumers that get the event again, and those asked before."""

    asked: tuple[str, ...]
    asked_before: tuple[str, ...]


class RetryConsumer(PullConsumer):
    """The events that workers of ``consumer`` gave up and somebody wants tried again."""

    stream = DLQ_STREAM

    def __init__(self, connection: Connection, consumer: PullConsumer) -> None:
        config = ConsumerConfig(
            durable_name=consumer.name,
            ack_policy=AckPolicy.EXPLICIT,
            ack_wait=consumer.ack_wait_s,
            # The end is decided here and not by the broker, whose advisories on the DLQ itself nobody would hear.
            max_deliver=-1,
            max_ack_pending=MAX_RETRIES_PENDING,
            filter_subject=letters_of("retry", consumer.name),
        )
        super().__init__(connection, config, BACKOFF_S)
        self.max_deliver = consumer.max_deliver

    async def _deliver(self, message: Msg) -> Delivery | None:
        if parse_letter_subject(message.subject) is None or was_copied(message):
            # Somebody else's words on a subject of ours: only the operator may wish.
            await self._end(message)
            return None
        sequence, attempt = _wanted(message).sequence, place_of(message).delivered
        _, is_handled = await letter_at(self.connection, LetterSubject("handled", self.name, sequence))
        if is_handled:
            # Only the acknowledgement was lost.
            await super().settle(message)
            return None
        stored = await stored_at(self.connection, sequence)
        if isinstance(stored, str):
            await self.give_up(message, stored)
        elif 0 < self.max_deliver < attempt:
            await self.give_up(message, f"its worker ended {attempt - 1} times while it had it")
        else:
            return Delivery(stored, attempt, message, self)
        return None

    async def settle(self, message: Msg) -> None:
        """Notes that the event was handled, and only then ends the wish: a crash between has it handled again."""
        crash_point("worker.handled_again")
        handled = LetterSubject("handled", self.name, _wanted(message).sequence)
        place, is_noted = await letter_at(self.connection, handled)
        if not is_noted:
            await put_once(self.connection, handled, b"", replaces=place)
        crash_point("worker.noted")
        await super().settle(message)

    async def give_up(self, message: Msg, reason: str, *, malformed: bool = False) -> None:
        """Buries the event anew with the reason of this time, and only then ends the wish."""
        sequence = _wanted(message).sequence
        event = await _event_at(self.connection, sequence)
        subject, body = (event.subject or "", event.data or b"") if event else ("", b"")
        self.buried += await bury(
            self.connection,
            sequence,
            subject,
            reason,
            body,
            consumer=self.name,
            replaces=_place_of_letter(message),
        )
        await self._end(message)


@contextlib.asynccontextmanager
async def retries_of(consumer: PullConsumer) -> AsyncIterator[PullConsumer]:
    """Receives what is given back to the workers of ``consumer``."""
    async with RetryConsumer(consumer.connection, consumer).open() as retries:
        yield retries


async def retry(connection: Connection, letter: DeadLetter) -> Retry:
    """Asks the consumer that gave the event up to handle it again; safe to repeat.

    Where nobody could understand the event before and this version can, all workers get it that take events like it.

    Raises:
        LetterMalformedError: the event cannot be understood, or is not in the stream any more.
        LetterUnclaimedError: no worker takes it.
    """
    stored = await stored_at(connection, letter.sequence)
    if isinstance(stored, str):
        raise LetterMalformedError(f"{letter.sequence} stays: {stored}", hint="correct its publisher")
    message = await _event_at(connection, letter.sequence)
    takers = await _takers(connection, letter, (message and message.subject) or "")
    if not takers:
        what = f"{letter.consumer} takes nothing back" if letter.consumer else "no worker takes events like it"
        raise LetterUnclaimedError(
            f"{letter.sequence} stays: {what}",
            hint="start the agent; one that follows the whole stream reads the event when it is started again",
        )
    asked = {taker: await _ask(connection, letter, taker) for taker in takers}
    return Retry(
        tuple(name for name, new in asked.items() if new), tuple(name for name, new in asked.items() if not new)
    )


async def stored_at(connection: Connection, sequence: int) -> Stored | str:
    """The event at this place of the stream, or why there is none."""
    message = await _event_at(connection, sequence)
    if message is None:
        return "the event is not in the stream any more"
    event = None if was_copied(message) else parsed(message.data or b"", message.subject or "")
    if event is None or message.time is None:
        return "the event cannot be understood"
    return Stored(sequence, message.time, event)


async def _event_at(connection: Connection, sequence: int) -> RawStreamMsg | None:
    try:
        return await connection.persist(lambda: connection.js.get_msg(EVENT_STREAM, sequence))
    except NotFoundError:
        return None


async def _ask(connection: Connection, letter: DeadLetter, consumer: str) -> bool:
    """Says that ``consumer`` should try again; false when somebody said so since the event was given up."""
    wish = LetterSubject("retry", consumer, letter.sequence)
    before, is_wish = await letter_at(connection, wish)
    if is_wish and before > letter.place:
        return False
    replaced, _ = await letter_at(connection, LetterSubject("given_up", consumer, letter.sequence))
    return await put_once(connection, wish, json.dumps({"letter": replaced}).encode(), replaces=before)


async def _takers(connection: Connection, letter: DeadLetter, subject: str) -> list[str]:
    """The consumers whose workers take this event back."""
    willing = {one.name for one in await _consumers(connection, DLQ_STREAM)}
    if letter.consumer:
        return [letter.consumer] if letter.consumer in willing else []
    return sorted(
        one.name
        for one in await _consumers(connection, EVENT_STREAM)
        if one.name in willing and any(matches(filter_, subject) for filter_ in _filters(one))
    )


async def _consumers(connection: Connection, stream: str) -> list[ConsumerInfo]:
    found: list[ConsumerInfo] = []

    async def page() -> list[ConsumerInfo]:
        return await connection.js.consumers_info(stream, len(found))

    while more := await connection.persist(page):
        found += more
    return found


def _filters(consumer: ConsumerInfo) -> list[str]:
    config = consumer.config
    return list(config.filter_subjects or ()) or [config.filter_subject or ">"]


def _wanted(message: Msg) -> LetterSubject:
    subject = parse_letter_subject(message.subject)
    assert subject is not None
    return subject


def _place_of_letter(message: Msg) -> int:
    """What the wish says of the letter's place; 0 when it says nothing that can be one."""
    try:
        place = int(json.loads(message.data)["letter"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return 0
    return place if 0 <= place < 2**63 else 0
