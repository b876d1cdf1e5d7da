"""What a slow or greedy peer cannot hold: sockets, requests, unread answers, and the gateway's time."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import os
import resource
import socket
import struct
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import websockets
from websockets.asyncio.client import connect

from agents.core.exchange.messages import (
    CHUNK_HEADER,
    MAX_CHUNK_BYTES,
    MAX_TEXT_BYTES,
    ErrorMessage,
    Ping,
    encode_chunk,
)
from agents.gateway.patience import FRAMES_AT_ONCE, MAX_FRAGMENTS, MAX_UNREAD_PONGS, NOT_READ
from agents.gateway.websocket import Strangers
from bus.client import Bus
from bus.words.tokens import TokenLimits, new_token
from tests.broker.gateway.conftest import DEADLINE_S, Gateway, Talk, readiness, serving, talking
from tests.conftest import wait_for

REQUEST_S = 0.5
SOCKETS = 16
BIG = 32 << 20
UPGRADE = (
    "GET /ws HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


@contextlib.asynccontextmanager
async def opened(gateway: Gateway) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A bare connection."""
    reader, writer = await asyncio.open_connection(*_address(gateway))
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


@contextlib.contextmanager
def silent(gateway: Gateway, count: int, *, of: str = "127.0.0.1") -> Iterator[list[socket.socket]]:
    """Connections of which nobody says or reads anything."""
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(socket.create_connection(_address(gateway), source_address=(of, 0)))
            for _ in range(count)
        ]


def _address(gateway: Gateway) -> tuple[str, int]:
    host, port = gateway.url.removeprefix("http://").split(":")
    return host, int(port)


async def cut(reader: asyncio.StreamReader) -> bytes:
    """What comes until the gateway cuts the connection."""
    came = b""
    async with asyncio.timeout(DEADLINE_S):
        try:
            while block := await reader.read(1 << 16):
                came += block
        except ConnectionResetError:
            pass
    return came


async def test_a_connection_that_says_nothing_is_cut(bus: Bus, tmp_path: Path) -> None:
    async with serving(bus, tmp_path, request_s=REQUEST_S) as gateway, opened(gateway) as (reader, _):
        began = time.monotonic()
        assert await cut(reader) == b""
        assert time.monotonic() - began >= 0.9 * REQUEST_S


async def test_a_request_that_trickles_in_is_cut_however_steady_it_is(bus: Bus, tmp_path: Path) -> None:
    async with serving(bus, tmp_path, request_s=REQUEST_S) as gateway, opened(gateway) as (reader, writer):
        ended = asyncio.create_task(cut(reader))
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
        while not ended.done():
            writer.write(b"x")
            await asyncio.wait({ended}, timeout=REQUEST_S / 20)
        assert await ended == b""


async def test_a_later_request_on_the_same_connection_has_no_longer(bus: Bus, tmp_path: Path) -> None:
    async with serving(bus, tmp_path, request_s=REQUEST_S) as gateway, opened(gateway) as (reader, writer):
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        async with asyncio.timeout(DEADLINE_S):
            assert (await reader.readuntil(b"ok\n")).startswith(b"HTTP/1.1 200")
        writer.write(b"GET /healthz HTTP/1.1\r\n")
        began = time.monotonic()
        assert await cut(reader) == b""
        # Sooner than uvicorn's own five seconds for an idle connection.
        assert time.monotonic() - began < 4.0


async def test_a_conversation_may_last_longer_than_its_request(bus: Bus, tmp_path: Path) -> None:
    async with serving(bus, tmp_path, request_s=REQUEST_S) as gateway, talking(gateway) as talk:
        began = time.monotonic()
        while time.monotonic() - began < 2 * REQUEST_S:
            await talk.say(Ping())
            assert (await talk.hear()).type == "pong"


async def test_the_head_of_a_request_has_a_limit(gateway: Gateway) -> None:
    async with opened(gateway) as (reader, writer):
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Long: " + b"x" * (1 << 17))
        assert (await cut(reader))[:12] in (b"HTTP/1.1 400", b"")


async def test_only_so_many_sockets_are_open_at_once(bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agents.gateway.patience.LEAST_S", 60.0)
    async with serving(bus, tmp_path, max_connections=SOCKETS) as gateway, opened(gateway) as (reader, writer):
        with silent(gateway, SOCKETS - 1):
            async with opened(gateway) as (refused, _):
                assert await cut(refused) == b""
            # Those of one address that were there before are left alone for a while.
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            assert (await cut(reader)).endswith(b"ok\n")
        await wait_for(lambda: welcome(gateway))


BEGUN = {
    "nothing": b"",
    "a slow head": b"GET /healthz HTTP/1.1\r\nX-Slow: ",
    "an idle connection": b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "an answer that is not read": b"GET /runs/shop/events HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a socket that waits for its turn": UPGRADE.format(host="localhost").encode(),
}


@pytest.mark.parametrize("begun", BEGUN)
async def test_one_address_cannot_hold_all_sockets(bus: Bus, tmp_path: Path, begun: str, monkeypatch: Any) -> None:
    monkeypatch.setattr("agents.gateway.websocket.LEAST_S", 60.0)
    hog, limits = "127.0.0.2", {"max_connections": SOCKETS, "max_watchers": SOCKETS, "max_token_watchers": SOCKETS}
    async with serving(bus, tmp_path, request_s=60, stall_s=60, **limits) as gateway:
        with silent(gateway, SOCKETS, of=hog) as sockets:
            for one in sockets:
                one.sendall(BEGUN[begun])
            if begun == "an idle connection":
                for one in sockets:
                    while not (await asyncio.to_thread(one.recv, 1_000)).endswith(b"ok\n"):
                        pass
            assert await welcome(gateway)
            assert await cut_of(sockets) == 1
            # Whoever is there keeps its place against those who come again and again.
            async with talking(gateway) as talk:
                with silent(gateway, 2 * SOCKETS, of=hog):
                    await talk.say(Ping())
                    assert (await talk.hear()).type == "pong"


async def test_of_one_address_a_socket_without_a_request_goes_after_a_moment(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agents.gateway.patience.LEAST_S", 0.3)
    async with serving(bus, tmp_path, max_connections=SOCKETS, request_s=60) as gateway:
        with silent(gateway, SOCKETS) as sockets:
            await wait_for(lambda: welcome(gateway))
            assert await cut_of(sockets) >= 1


async def cut_of(sockets: list[socket.socket]) -> int:
    """How many of these the gateway has cut."""
    cut = 0
    for one in sockets:
        one.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            try:
                while one.recv(1 << 16):
                    pass
                cut += 1
            except ConnectionResetError:
                cut += 1
    return cut


async def test_a_thousand_idle_sockets_keep_nobody_out_for_long(bus: Bus, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 4_096)), hard))
    try:
        async with serving(bus, tmp_path, max_connections=SOCKETS, request_s=REQUEST_S) as gateway:
            with silent(gateway, 1_000):
                await wait_for(lambda: welcome(gateway), within_s=30)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def welcome(gateway: Gateway) -> bool:
    """Whether a client gets in now."""
    try:
        async with talking(gateway):
            return True
    except (OSError, websockets.WebSocketException):
        return False


async def test_a_reader_that_takes_nothing_is_cut(bus: Bus, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "agents.gateway.patience")
    async with serving(bus, tmp_path, stall_s=0.5) as gateway:
        big = await bus.objects.put(os.urandom(BIG))
        async with httpx.AsyncClient(base_url=gateway.url) as http:
            await readiness(http)
        with silent(gateway, 1) as (reader,):
            reader.sendall(f"GET /objects/{big.sha256} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            await wait_for(lambda: NOT_READ in caplog.text)
            # What the kernels held is all that there is.
            reader.settimeout(DEADLINE_S)
            came = 0
            with contextlib.suppress(ConnectionError):
                while block := await asyncio.to_thread(reader.recv, 1 << 20):
                    came += len(block)
            assert came < BIG


async def test_who_pings_and_never_reads_is_cut_before_the_pongs_fill_the_memory(gateway: Gateway) -> None:
    key = base64.b64encode(os.urandom(16)).decode()
    ping = struct.pack("!BB", 0x89, 0x80 | 125) + bytes(4) + bytes(125)
    with silent(gateway, 1) as (peer,):
        peer.sendall(
            f"GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode()
        )
        peer.setblocking(False)
        loop, sent = asyncio.get_running_loop(), 0
        async with asyncio.timeout(DEADLINE_S):
            with contextlib.suppress(ConnectionError):
                while True:
                    await loop.sock_sendall(peer, 1_000 * ping)
                    sent += 1_000 * len(ping)
    # What both sides' kernels hold comes before what the gateway would.
    assert sent > MAX_UNREAD_PONGS


@pytest.mark.parametrize("spare", [0, 1])
async def test_a_frame_may_be_as_large_as_a_chunk_and_not_a_byte_larger(gateway: Gateway, spare: int) -> None:
    async with talking(gateway) as talk:
        await talk.say(encode_chunk(1, 0, bytes(MAX_CHUNK_BYTES)) + bytes(spare))
        if spare:
            assert await talk.closed_with() == 1009
        else:
            assert (await talk.hear_a(ErrorMessage)).code == "unknown_upload"


async def test_a_message_in_many_fragments_counts_as_one(gateway: Gateway) -> None:
    async with talking(gateway) as talk:
        await talk.socket.send(bytes(MAX_CHUNK_BYTES // 4) for _ in range(5))
        assert await talk.closed_with() == 1009


async def test_nothing_is_decompressed(gateway: Gateway) -> None:
    async with connect(gateway.socket_url, compression="deflate") as socket:
        assert socket.protocol.extensions == []


async def test_a_client_that_talks_too_fast_is_read_at_its_rate(bus: Bus, tmp_path: Path) -> None:
    rate, spare = 50.0, 25
    async with serving(bus, tmp_path, messages_per_s=rate) as gateway, talking(gateway) as talk:
        began = time.monotonic()
        count = int(2 * rate) + spare
        for _ in range(count):
            await talk.say(Ping())
        for _ in range(count):
            assert (await talk.hear()).type == "pong"
        assert time.monotonic() - began >= 0.9 * spare / rate


async def test_the_holders_of_a_token_share_its_rate(bus: Bus, tmp_path: Path) -> None:
    frame = encode_chunk(1, 0, bytes(50_000))
    rate = 5 * len(frame)
    token, record = new_token("train", limits=TokenLimits(bytes_per_s=float(rate)))
    await bus.tokens.put(record)
    async with (
        serving(bus, tmp_path, max_errors=100) as gateway,
        talking(gateway, "one", token=token) as one,
        talking(gateway, "two", token=token) as two,
        talking(gateway, "three", token=token) as three,
    ):

        async def send(talk: Talk) -> None:
            for _ in range(5):
                await talk.say(frame)
                assert (await talk.hear_a(ErrorMessage)).code == "unknown_upload"
            await talk.say(Ping())
            assert (await talk.hear()).type == "pong"

        began = time.monotonic()
        async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as group:
            for talk in (one, two, three):
                group.create_task(send(talk))
        # Fifteen frames: ten are the burst of two seconds.
        assert time.monotonic() - began >= 0.9 * 5 / 5


def test_the_size_of_a_chunk_is_part_of_the_contract() -> None:
    assert (MAX_CHUNK_BYTES, CHUNK_HEADER.size) == (524_288, 12)


LOOPS = 160


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True) -> bytes:
    """One frame of at most 125 bytes, masked with zeros."""
    return bytes([(0x80 if fin else 0) | opcode, 0x80 | len(payload)]) + bytes(4) + payload


@contextlib.asynccontextmanager
async def upgraded(gateway: Gateway) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A WebSocket on which every byte is said by the test."""
    async with opened(gateway) as (reader, writer):
        writer.write(UPGRADE.format(host="{}:{}".format(*_address(gateway))).encode())
        async with asyncio.timeout(DEADLINE_S):
            await reader.readuntil(b"\r\n\r\n")
        yield reader, writer


async def test_who_opens_sockets_and_says_nothing_keeps_nobody_out(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So few that most of the loops wait for a place at any time; client and gateway share one event loop here.
    monkeypatch.setattr("agents.gateway.websocket.MAX_STRANGERS", 64)
    monkeypatch.setattr("agents.gateway.websocket.LEAST_S", 0.3)
    opened_so_far = 0

    async def loop(gateway: Gateway) -> None:
        nonlocal opened_so_far
        while True:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, TimeoutError):
                async with upgraded(gateway) as (reader, _):
                    opened_so_far += 1
                    await reader.read()

    async with serving(bus, tmp_path) as gateway, asyncio.TaskGroup() as group:
        loops = [group.create_task(loop(gateway)) for _ in range(LOOPS)]
        await wait_for(lambda: opened_so_far > LOOPS, within_s=60)
        assert [await welcome(gateway) for _ in range(8)] == [True] * 8
        for one in loops:
            one.cancel()


async def test_malformed_messages_before_hello_buy_no_time(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agents.core.exchange.presence.HELLO_S", 0.5)
    async with serving(bus, tmp_path, max_errors=1_000) as gateway, upgraded(gateway) as (reader, writer):
        # Whoever does not answer the goodbye is still there for a while: what counts is that it is said.
        goodbye = asyncio.create_task(reader.readuntil(b"no_hello"))
        async with asyncio.timeout(DEADLINE_S):
            while not goodbye.done():
                writer.write(frame(1, b"{"))
                await asyncio.wait({goodbye}, timeout=0.1)
            await goodbye


async def test_of_those_who_say_nothing_the_oldest_of_the_greediest_address_goes() -> None:
    strangers = Strangers(4, least_s=60)
    async with asyncio.timeout(DEADLINE_S):
        out = [await strangers.enter(address) for address in "aaabcd"]
    assert [one.is_set() for one in out] == [True, True, False, False, False, False]


async def test_of_one_address_nobody_goes_before_his_time_and_the_next_comes_in_order() -> None:
    strangers, least_s, came = Strangers(2, least_s=0.5), 0.5, list[int]()
    began = time.monotonic()

    async def come(number: int) -> asyncio.Event:
        out = await strangers.enter("a")
        came.append(number)
        return out

    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as group:
        entering = [group.create_task(come(number)) for number in range(5)]
    assert came == [0, 1, 2, 3, 4]
    assert [one.result().is_set() for one in entering] == [True, True, True, False, False]
    assert time.monotonic() - began >= 2 * least_s


@pytest.mark.parametrize("opcode", [0, 1, 2, 9, 10])
async def test_empty_frames_are_counted_and_cost_the_others_nothing(gateway: Gateway, opcode: int) -> None:
    flood = frame(opcode, fin=opcode != 0) * (2 * FRAMES_AT_ONCE)
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(contextlib.suppress(ConnectionError))
        reader, writer = await stack.enter_async_context(upgraded(gateway))
        writer.write(frame(1, fin=False) if opcode == 0 else b"")
        writer.write(flood)
        # Continuations of one message end at its own bound.
        assert b"too many frames" in await cut(reader)
    assert await welcome(gateway)


async def test_a_message_may_come_in_so_many_frames_and_not_one_more(gateway: Gateway) -> None:
    for fragments, taken in ((MAX_FRAGMENTS, True), (MAX_FRAGMENTS + 1, False)):
        async with upgraded(gateway) as (reader, writer):
            writer.write(frame(1, b"{", fin=False) + frame(0, fin=False) * (fragments - 1) + frame(0))
            async with asyncio.timeout(DEADLINE_S):
                answer = await reader.read(200)
            assert (b"bad_message" in answer) is taken
            assert (b"too many frames" in answer) is not taken


async def test_sixty_four_kib_of_text_are_bytes_and_not_characters(gateway: Gateway) -> None:
    async with talking(gateway) as talk:
        for text, code in (
            ("\u00e4" * (MAX_TEXT_BYTES // 2), "bad_message"),
            ("\u00e4" * (MAX_TEXT_BYTES // 2 + 1), "too_large"),
        ):
            await talk.say(text)
            assert (await talk.hear_a(ErrorMessage)).code == code


ODD = {
    "CONNECT elsewhere:443 HTTP/1.1\r\nHost: elsewhere:443\r\n\r\n": b"421",
    "CONNECT localhost:443 HTTP/1.1\r\nHost: localhost:443\r\n\r\nbytes of a tunnel": b"405",
    "OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n": b"405",
    "TRACE /runs HTTP/1.1\r\nHost: localhost\r\n\r\n": b"405",
    "POST /runs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\nabcGET": b"405",
    "PUT /healthz HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nno chunk": b"4",
    "GET /healthz HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nno chunk\r\n": b"400",
    "POST /healthz HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n": b"405",
    "GET http://localhost/healthz HTTP/1.1\r\nHost: localhost\r\n\r\n": b"404",
    "GET /a%00b HTTP/1.1\r\nHost: localhost\r\n\r\n": b"404",
    "GET /%ff%fe/.. HTTP/1.1\r\nHost: localhost\r\n\r\n": b"307",
    f"GET /{'a' * 5_000} HTTP/1.1\r\nHost: localhost\r\n\r\n": b"404",
    "GET /runs/a%00b/events HTTP/1.1\r\nHost: localhost\r\n\r\n": b"40",
    "GET /healthz HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n": b"4",
    "GET /healthz HTTP/1.0\r\n\r\n": b"200",
    "GET /healthz HTTP/1.1\r\n\r\n": b"400",
    "GET /healthz HTTP/1.1\r\nHost: localhost\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n": b"200",
    "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n\x00\x01 nonsense\r\n\r\n": b"200",
    "POST /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n": b"405",
    "GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n": b"4",
    "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n": b"4",
}


async def test_odd_requests_are_refused_and_leave_no_traceback(
    bus: Bus, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "index.html").write_text("<!doctype html>")
    async with serving(bus, tmp_path, request_s=REQUEST_S) as gateway:
        for request, status in ODD.items():
            async with opened(gateway) as (reader, writer):
                writer.write(request.encode("latin-1"))
                async with asyncio.timeout(DEADLINE_S):
                    answer = await reader.readuntil(b"\r\n\r\n")
                    # What was sent after it is looked at as well.
                    writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                    with contextlib.suppress(ConnectionError):
                        await reader.read()
                assert answer.split(b" ")[1].startswith(status), (request, answer[:200])
                assert b"405" not in answer[:12] or b"allow: get" in answer.lower(), answer
        assert await welcome(gateway)
    assert [record for record in caplog.records if record.exc_info or "Traceback" in record.getMessage()] == []
