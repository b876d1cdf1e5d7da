"""``/objects/<sha256>``: the bytes of the object store over HTTP, with ranges, and cached for ever by whoever asks."""

from __future__ import annotations

import contextlib
import logging
import re
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse

from agents.gateway.hub import Hub
from bus.errors import FedbusError, ObjectMissingError
from bus.words.values import Ref

log = logging.getLogger(__name__)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
_KNOWN = 4096


class UnsatisfiableRangeError(Exception):
    """The range that was asked for does not lie inside the object."""


def parse_range(header: str | None, size: int) -> tuple[int, int] | None:
    """Start and end (exclusive) of a ``Range`` header; nothing when it asks for everything or for several ranges.

    Raises:
        UnsatisfiableRangeError: it begins past the end, or asks for no byte at all.
    """
    match = _RANGE.fullmatch(header.replace(" ", "")) if header else None
    if match is None or match.group(0) == "bytes=-":
        return None
    first, last = match.groups()
    if not first:
        start, end = max(0, size - int(last)), size
    else:
        start, end = int(first), min(size, int(last) + 1 if last else size)
        if last and int(last) < start:
            return None
    if start >= end:
        raise UnsatisfiableRangeError
    return start, end


class Objects:
    """The endpoint; what clients must not see is as if it did not exist."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._bus = hub.bus
        self._known: OrderedDict[str, Ref] = OrderedDict()
        self.served_bytes = 0

    async def __call__(self, request: Request) -> Response:
        """Answers one GET or HEAD."""
        sha256 = request.path_params["sha256"]
        if not self._hub.is_caught_up:
            return PlainTextResponse("not ready yet\n", 503, {"Retry-After": "1"})
        if not _SHA256.fullmatch(sha256):
            return PlainTextResponse("no such object\n", 404)
        if self._hub.runs.is_secret(sha256) is None:
            # No open run needs it: only the runs that are over can tell whether it may be read.
            try:
                await self._hub.recalled()
            except TimeoutError:
                return PlainTextResponse("not ready yet\n", 503, {"Retry-After": "1"})
        if self._hub.runs.is_secret(sha256):
            return PlainTextResponse("no such object\n", 404)
        try:
            ref = await self._find(sha256)
            return await self._answer(request, ref) if ref else PlainTextResponse("no such object\n", 404)
        except FedbusError as error:
            # What was heard of it may not be true.
            self._known.pop(sha256, None)
            if isinstance(error, ObjectMissingError):
                return PlainTextResponse("no such object\n", 404)
            log.error("an object cannot be read: %s", error)
            return PlainTextResponse("the object cannot be read\n", 502)

    async def _find(self, sha256: str) -> Ref | None:
        ref = self._known.get(sha256) or await self._bus.objects.info(f"sha256-{sha256}")
        if ref is not None:
            self._known[sha256] = ref
            while len(self._known) > _KNOWN:
                self._known.popitem(last=False)
        return ref

    async def _answer(self, request: Request, ref: Ref) -> Response:
        headers = {
            "ETag": f'"{ref.sha256}"',
            "Cache-Control": "private, max-age=31536000, immutable",
            "Accept-Ranges": "bytes",
        }
        if headers["ETag"] in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        condition = request.headers.get("if-range")
        wanted = request.headers.get("range") if condition in (None, headers["ETag"]) else None
        try:
            part = parse_range(wanted, ref.size)
        except UnsatisfiableRangeError:
            return Response(status_code=416, headers=headers | {"Content-Range": f"bytes */{ref.size}"})
        start, end = part or (0, ref.size)
        headers["Content-Length"] = str(end - start)
        if part is not None:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{ref.size}"
        status = 206 if part else 200
        if request.method == "HEAD":
            return Response(status_code=status, headers=headers, media_type=ref.media_type)
        chunks = self._bus.objects.stream(ref, start=start, end=end)
        # The first chunk comes before the status line, so that a lost object is a 404 and not a cut answer.
        first = await anext(chunks, b"")
        return StreamingResponse(self._body(first, chunks), status, headers, ref.media_type)

    async def _body(self, first: bytes, rest: AsyncGenerator[bytes, None]) -> AsyncIterator[bytes]:
        async with contextlib.aclosing(rest):
            self.served_bytes += len(first)
            yield first
            async for chunk in rest:
                self.served_bytes += len(chunk)
                yield chunk
