"""Join tokens on the broker: the newest record of each."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime

from pydantic import ValidationError

from bus.broker.connection import Connection
from bus.broker.direct_get import lies_copied, read_stored, was_copied
from bus.broker.topology import TOKEN_STREAM
from bus.errors import FedbusError, MalformedSubjectError
from bus.words.subjects import ALL_TOKENS, token_subject
from bus.words.tokens import TokenRecord

LOOK_EVERY_S = 1.0
_BATCH, _STALL_S = 256, 10.0


class TokenUnknownError(FedbusError):
    """No token has this id."""

    code = "token_unknown"


class TokenStore:
    """The records; only the operator may write them."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def put(self, record: TokenRecord) -> None:
        """Keeps the record in place of an older one of its id."""
        body = record.model_dump_json().encode()
        await self._connection.persist(
            lambda: self._connection.js.publish(token_subject(record.id), body, stream=TOKEN_STREAM)
        )

    async def revoke(self, name: str) -> TokenRecord:
        """Ends the token of this id; the record stays, so that it can be seen when that was.

        Raises:
            TokenUnknownError: there is none.
        """
        record = next((one for one in await self.all() if one.id == name), None)
        if record is None:
            raise TokenUnknownError(f"there is no token {name}", hint="fedbus token list")
        if record.revoked is None:
            record = record.model_copy(update={"revoked": datetime.now(UTC)})
            await self.put(record)
        return record

    async def all(self) -> list[TokenRecord]:
        """Every record, oldest first; what cannot be read is no record, and lets nobody in.

        Neither is what the broker wrote there as its answer to somebody who may not write there: that is seen only
        where the message is asked for as it lies in the stream.
        """
        found: dict[str, TokenRecord] = {}
        stored = read_stored(self._connection, TOKEN_STREAM, ALL_TOKENS, start=1, batch=_BATCH, stall_s=_STALL_S)
        async with contextlib.aclosing(stored) as messages:
            async for message in messages:
                with contextlib.suppress(ValidationError):
                    record = TokenRecord.model_validate_json(message.data)
                    # One that is gone was replaced at this moment; the next look finds what stands there now.
                    is_own = token_subject(record.id) == message.subject
                    if is_own and not await lies_copied(self._connection, TOKEN_STREAM, message.sequence):
                        # A replica that is behind may still have an older record: the last one counts.
                        found[record.id] = record
        return sorted(found.values(), key=lambda record: (record.created, record.id))

    async def find(self, name: str) -> TokenRecord | None:
        """The record of this id as the stream's leader has it now; one request."""
        try:
            subject = token_subject(name)
        except MalformedSubjectError:
            return None
        message = await self._connection.last_message(TOKEN_STREAM, subject)
        if message is None or was_copied(message):
            return None
        with contextlib.suppress(ValidationError):
            record = TokenRecord.model_validate_json(message.data or b"")
            return record if record.id == name else None
        return None

    async def changes(self, every_s: float = LOOK_EVERY_S) -> AsyncIterator[list[TokenRecord]]:
        """All records at once, and again within ``every_s`` of each change; endless."""
        last = -1
        while True:
            info = await self._connection.persist(lambda: self._connection.js.stream_info(TOKEN_STREAM))
            if info.state.last_seq != last:
                try:
                    records = await self.all()
                except TimeoutError:
                    continue
                last = info.state.last_seq
                yield records
            await asyncio.sleep(every_s)
