"""An HTTP client that reads no answer for ever: whoever sends more than a label answer can have is cut off."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx2
from openai import DefaultAsyncHttpxClient

MOST_BYTES = 8 << 20
MOST_COMPRESSED = 128 << 10
"""Bytes of an answer that is compressed, of which each stands for up to a thousand."""


class ReplyTooLongError(Exception):
    """The server sends more than any answer has."""


class _Bounded(httpx2.AsyncByteStream):
    """A body up to ``most`` bytes."""

    def __init__(self, stream: httpx2.AsyncByteStream, most: int) -> None:
        self._stream, self._most = stream, most

    async def __aiter__(self) -> AsyncIterator[bytes]:
        left = self._most
        async for part in self._stream:
            left -= len(part)
            if left < 0:
                raise ReplyTooLongError(f"the answer has more than {self._most} bytes")
            yield part

    async def aclose(self) -> None:
        await self._stream.aclose()


async def _bound(response: httpx2.Response) -> None:
    assert isinstance(response.stream, httpx2.AsyncByteStream)
    encoded = response.headers.get("content-encoding", "identity") != "identity"
    response.stream = _Bounded(response.stream, MOST_COMPRESSED if encoded else MOST_BYTES)


def bounded_client(timeout_s: float) -> httpx2.AsyncClient:
    """The client to hand to ``AsyncOpenAI``, which closes it; it differs from its own in the bound alone."""
    return DefaultAsyncHttpxClient(timeout=timeout_s, event_hooks={"response": [_bound]})
