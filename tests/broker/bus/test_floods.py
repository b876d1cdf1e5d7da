"""The dead-letter stream is bounded, in all and by sender, and what it says of a flood is true."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agents.words.events import RoundStarted
from bus.broker.direct_get import stream_state
from bus.broker.server import embedded_server
from bus.broker.topology import DLQ_STREAM, MAX_LETTER_BYTES, MAX_LETTERS, NEWEST_LETTERS
from bus.client import Bus, CaughtUp
from bus.stream.dead_letters import COUNT, FIRST, MAX_BODY, REASON, SEQUENCE, SUBJECT
from bus.stream.letter_list import count_open
from bus.words.subjects import EVENTS, newest_letters, sender_of

REST = 20
FLOOD = FIRST + REST + NEWEST_LETTERS


async def read_all(bus: Bus) -> int:
    async with bus.follow(EVENTS, live=False) as items:
        return len([one async for one in items if not isinstance(one, CaughtUp)])


async def test_of_a_flood_the_first_and_the_newest_are_kept_and_the_others_counted(tmp_path: Path) -> None:
    async with (
        embedded_server(tmp_path / "nats") as server,
        Bus.connect(server.settings, name="one") as one,
        Bus.connect(server.settings, name="two") as two,
    ):
        js = one.connection.js
        await asyncio.gather(
            *(js.publish(f"ev.shop.round.started.{n}", b"{" * MAX_BODY + b"x", timeout=30) for n in range(1, FLOOD + 1))
        )
        honest = await js.publish("ev.shop.task.assigned.1.u0", b"not yet known")
        await one.publish(RoundStarted(run="quiet", round=1))
        # Two agents at once, one of them again after it was restarted, and one that reads a part.
        assert await asyncio.gather(read_all(one), read_all(two)) == [1, 1]
        async with Bus.connect(server.settings, name="again") as again:
            assert await read_all(again) == 1
            assert await read_all(again) == 1
        letters = await one.dead_letters()
        flood = [letter for letter in letters if sender_of(letter.subject) == "round-started"]
        assert [letter.sequence for letter in flood] == [
            *range(1, FIRST + 1),
            *range(FLOOD - NEWEST_LETTERS + 1, FLOOD + 1),
        ]
        assert [letter.unkept for letter in flood if letter.unkept] == [REST]
        assert {len(letter.body) for letter in flood} == {MAX_BODY}
        assert [letter.sequence for letter in letters if letter not in flood] == [honest.seq]
        subjects = (await stream_state(one.connection, DLQ_STREAM, ">")).subjects
        assert await count_open(one.connection, subjects) == len(letters)
        assert sum(subjects.values()) == len(letters)


async def test_dead_letters_are_read_a_thousand_with_a_request_and_the_stream_takes_no_more_than_it_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full, more = 1_100, 5
    async with embedded_server(tmp_path / "nats") as server, Bus.connect(server.settings, name="one") as bus:
        js = bus.connection.js
        config = (await js.stream_info(DLQ_STREAM)).config
        assert (config.max_msgs, config.max_bytes) == (MAX_LETTERS, MAX_LETTER_BYTES)
        await js.update_stream(replace(config, max_msgs=full))
        await asyncio.gather(
            *(
                js.publish(f"dlq.given_up.labeller.{n}", b"x" * 1_000, headers={REASON: "no"}, timeout=30)
                for n in range(1, full + more + 1)
            )
        )
        requests: list[str] = []
        publish = bus.connection.nc.publish

        async def counted(subject: str, *arguments: Any, **options: Any) -> None:
            requests.append(subject)
            await publish(subject, *arguments, **options)

        monkeypatch.setattr(bus.connection.nc, "publish", counted)
        letters = await bus.dead_letters()
        assert sorted(one.sequence for one in letters) == list(range(more + 1, full + more + 1))
        # Two batches, and a look whether there is more.
        assert len(requests) <= 3, requests


async def test_of_a_full_stream_of_letters_only_those_are_read_that_are_listed(tmp_path: Path) -> None:
    first, newest, full = 20, 80, 1_500
    async with embedded_server(tmp_path / "nats") as server, Bus.connect(server.settings, name="one") as bus:
        js = bus.connection.js
        for n in range(1, full + 1):
            await js.publish_async(f"dlq.given_up.labeller.{n}", b"x" * 1_000, headers={REASON: "no"})
        await js.publish_async_completed()
        # The oldest was handled, the second asked for again, the third given up again.
        await js.publish("dlq.handled.labeller.1", b"")
        await js.publish("dlq.retry.labeller.2", b'{"letter": 2}')
        await js.publish("dlq.given_up.labeller.3", b"again")
        before = dict(bus.connection.nc.stats)
        letters, count = await bus.ends_of_dead_letters(first, newest)
        after = bus.connection.nc.stats
        assert count == full - 1
        assert [one.sequence for one in letters] == [
            2,
            *range(4, 4 + first - 1),
            *range(full - newest + 2, full + 1),
            3,
        ]
        assert [one.sequence for one in letters if one.retry_at] == [2]
        # The state of the stream, a part at each end and whether there is more, and three notes.
        assert after["out_msgs"] - before["out_msgs"] <= 10
        assert after["in_msgs"] - before["in_msgs"] <= 2 * (first + newest) + 20
        # Everything is what both ends come to when they meet.
        everything = await bus.dead_letters()
        assert await bus.ends_of_dead_letters(full, full) == (everything, full - 1)
        assert letters == [*everything[:first], *everything[-newest:]]


async def test_a_letter_that_claims_a_sequence_to_come_silences_no_later_one(tmp_path: Path) -> None:
    async with embedded_server(tmp_path / "nats") as server, Bus.connect(server.settings, name="one") as bus:
        js = bus.connection.js
        false = {SEQUENCE: str(10**17), COUNT: str(10**17), SUBJECT: "ev.shop.round.started.1"}
        await js.publish(newest_letters("round-started"), b"false", headers=false)
        for n in range(1, FIRST + 3):
            await js.publish(f"ev.shop.round.started.{n}", b"{")
        for _ in range(2):
            assert await read_all(bus) == 0
        letters = [one for one in await bus.dead_letters() if one.body != b"false"]
        assert sorted(one.sequence for one in letters) == list(range(1, FIRST + 3))
        assert not any(one.unkept for one in letters)
        assert sum((await stream_state(bus.connection, DLQ_STREAM, ">")).subjects.values()) == FIRST + 3
